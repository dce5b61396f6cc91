//! Ports, which arrive as JavaScript numbers.

use crate::firewall::rule::{PortRange, Ports, RuleError};
use crate::types::FirewallRuleInput;

/// Reads all four ports of a rule.
pub(in crate::firewall) fn ports(input: &FirewallRuleInput) -> Result<Ports, RuleError> {
    Ok(Ports {
        source: range(input.src_port_start, input.src_port_end)?,
        destination: range(input.dst_port_start, input.dst_port_end)?,
    })
}

fn range(first: Option<f64>, last: Option<f64>) -> Result<Option<PortRange>, RuleError> {
    let (first, last) = match (first, last) {
        (None, None) => return Ok(None),
        (None, Some(last)) => return Err(RuleError::PortStartMissing(last)),
        (Some(first), last) => (port(first)?, port(last.unwrap_or(first))?),
    };
    if first > last {
        return Err(RuleError::PortOrder { first, last });
    }
    Ok(Some(PortRange { first, last }))
}

/// JavaScript has one kind of number; nft refuses the whole transaction over `1.5`.
fn port(number: f64) -> Result<u16, RuleError> {
    let whole = number.fract() == 0.0 && (0.0..=f64::from(u16::MAX)).contains(&number);
    if !whole {
        return Err(RuleError::Port(number));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a whole number from 0 to 65535"
    )]
    let port = number as u16;
    Ok(port)
}

//! `FirewallRuleTranslator`, over the core's `firewall`.

use infinization_core::Failure;
use infinization_core::firewall::{FirewallRuleTranslator as Translator, TranslationError};
use infinization_core::types::FirewallRuleInput;
use napi_derive::napi;
use serde_json::Value;

use crate::argument::Argument;
use crate::outcome::{Outcome, checked, now};

/// Rules as the tokens of an `nft add rule` command. The façade makes a `FirewallTranslationError`
/// of every refusal.
#[napi]
#[derive(Debug)]
pub struct FirewallRuleTranslator {}

#[napi]
impl FirewallRuleTranslator {
    #[napi]
    pub fn translate_to_tokens(rule: Argument, tap: Argument) -> Outcome {
        now(rule_of(rule).and_then(|rule| {
            let tap = tap.text("tapName")?;
            Translator::translate_to_tokens(&rule, &tap).map_err(refused)
        }))
    }

    #[napi]
    pub fn translate_direction_to_tokens(direction: Argument, tap: Argument) -> Outcome {
        now(direction.text("direction").and_then(|direction| {
            let tap = tap.text("tapName")?;
            Translator::translate_direction_to_tokens(&direction, &tap).map_err(refused)
        }))
    }

    #[napi]
    pub fn translate_protocol_to_tokens(protocol: Argument) -> Outcome {
        now(protocol.optional_text("protocol").and_then(|protocol| {
            Translator::translate_protocol_to_tokens(protocol.as_deref()).map_err(refused)
        }))
    }

    #[napi]
    pub fn translate_ports_to_tokens(
        protocol: Argument,
        src_start: Argument,
        src_end: Argument,
        dst_start: Argument,
        dst_end: Argument,
    ) -> Outcome {
        let read = || {
            let rule = FirewallRuleInput {
                protocol: protocol.optional_text("protocol")?,
                src_port_start: src_start.shaped("srcPortStart")?,
                src_port_end: src_end.shaped("srcPortEnd")?,
                dst_port_start: dst_start.shaped("dstPortStart")?,
                dst_port_end: dst_end.shaped("dstPortEnd")?,
                ..FirewallRuleInput::default()
            };
            Translator::translate_ports_to_tokens(&rule).map_err(refused)
        };
        now(read())
    }

    #[napi]
    pub fn translate_ip_addresses_to_tokens(
        src_ip: Argument,
        src_mask: Argument,
        dst_ip: Argument,
        dst_mask: Argument,
    ) -> Outcome {
        let read = || {
            let rule = FirewallRuleInput {
                src_ip_addr: src_ip.optional_text("srcIpAddr")?,
                src_ip_mask: src_mask.optional_text("srcIpMask")?,
                dst_ip_addr: dst_ip.optional_text("dstIpAddr")?,
                dst_ip_mask: dst_mask.optional_text("dstIpMask")?,
                ..FirewallRuleInput::default()
            };
            Translator::translate_ip_addresses_to_tokens(&rule).map_err(refused)
        };
        now(read())
    }

    #[napi]
    pub fn translate_connection_state_to_tokens(state: Argument) -> Outcome {
        now(state.value("connectionState").and_then(|state: Value| {
            Translator::translate_connection_state_to_tokens(Some(&state)).map_err(refused)
        }))
    }

    #[napi]
    pub fn translate_action(action: Argument) -> Outcome {
        now(action
            .text("action")
            .and_then(|action| Translator::translate_action(&action).map_err(refused)))
    }

    #[napi]
    pub fn validate_rule(rule: Argument) -> Outcome {
        checked(rule_of(rule).and_then(|rule| Translator::validate_rule(&rule).map_err(refused)))
    }

    #[napi]
    pub fn is_valid_ip_address(text: Argument) -> Outcome {
        now(text
            .text("address")
            .map(|text| Translator::is_valid_ip_address(&text)))
    }

    #[napi]
    pub fn is_valid_cidr(text: Argument) -> Outcome {
        now(text
            .text("cidr")
            .map(|text| Translator::is_valid_cidr(&text)))
    }

    #[napi]
    pub fn is_valid_subnet_mask(text: Argument) -> Outcome {
        now(text
            .text("mask")
            .map(|text| Translator::is_valid_subnet_mask(&text)))
    }
}

fn rule_of(argument: Argument) -> Result<FirewallRuleInput, Failure> {
    argument.shaped("rule")
}

/// The rule's id travels apart: the error class puts it in front of the message.
fn refused(error: TranslationError) -> Failure {
    let failure = Failure::new(error.code, error.message);
    match error.rule_id {
        Some(id) => failure.with("ruleId", id),
        None => failure,
    }
}

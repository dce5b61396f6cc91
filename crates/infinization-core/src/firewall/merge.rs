//! Department and VM rules become one list. Works on raw rules, as the contract compares them raw.

use crate::types::FirewallRuleInput;

use super::parse::parse_rule;

/// A rule, and whose it is.
#[derive(Debug, Clone, Copy)]
pub struct Merged<'a> {
    /// The rule.
    pub rule: &'a FirewallRuleInput,
    /// The department's, not the VM's own.
    pub of_department: bool,
}

/// The rules of a VM in the order they are tried: by ascending priority, the department's before
/// the VM's own at the same priority, otherwise as given.
///
/// A VM rule with `overrides_dept` takes the place of an equal department rule. One that is not a
/// valid rule takes nobody's place: a typo must not remove the department's protection.
pub fn merge<'a>(
    department: &'a [FirewallRuleInput],
    vm: &'a [FirewallRuleInput],
) -> Vec<Merged<'a>> {
    let overriding: Vec<_> = vm
        .iter()
        .filter(|rule| rule.overrides_dept && parse_rule(rule).is_ok())
        .collect();
    let kept = department
        .iter()
        .filter(|rule| !overriding.iter().any(|by| overrides(by, rule)));
    let of = |of_department| {
        move |rule| Merged {
            rule,
            of_department,
        }
    };
    let kept = kept.map(of(true));
    let mut rules: Vec<_> = kept.chain(vm.iter().map(of(false))).collect();
    rules.sort_by(|a, b| a.rule.priority.total_cmp(&b.rule.priority));
    rules
}

/// Masks, actions, states and names may differ.
fn overrides(by: &FirewallRuleInput, rule: &FirewallRuleInput) -> bool {
    protocol(by).eq_ignore_ascii_case(protocol(rule))
        && directions_meet(&by.direction, &rule.direction)
        && by.src_port_start == rule.src_port_start
        && by.src_port_end == rule.src_port_end
        && by.dst_port_start == rule.dst_port_start
        && by.dst_port_end == rule.dst_port_end
        && given(by.src_ip_addr.as_deref()) == given(rule.src_ip_addr.as_deref())
        && given(by.dst_ip_addr.as_deref()) == given(rule.dst_ip_addr.as_deref())
}

fn protocol(rule: &FirewallRuleInput) -> &str {
    given(rule.protocol.as_deref()).unwrap_or("all")
}

fn directions_meet(a: &str, b: &str) -> bool {
    a == b || a == "INOUT" || b == "INOUT"
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, priority: f64) -> FirewallRuleInput {
        FirewallRuleInput {
            name: name.into(),
            action: "ACCEPT".into(),
            direction: "IN".into(),
            protocol: Some("tcp".into()),
            dst_port_start: Some(22.0),
            priority,
            ..FirewallRuleInput::default()
        }
    }

    fn overriding(name: &str) -> FirewallRuleInput {
        FirewallRuleInput {
            overrides_dept: true,
            ..rule(name, 500.0)
        }
    }

    fn names<'a>(department: &'a [FirewallRuleInput], vm: &'a [FirewallRuleInput]) -> Vec<&'a str> {
        let merged = merge(department, vm).into_iter();
        merged.map(|it| it.rule.name.as_str()).collect()
    }

    #[test]
    fn b28_priority_then_department_then_as_given() {
        let department = [rule("d1", 5.0), rule("d2", 5.0), rule("d3", 1.0)];
        let vm = [rule("v1", 5.0), rule("v2", -3.0), rule("v2", 0.5)];
        assert_eq!(
            names(&department, &vm),
            ["v2", "v2", "d3", "d1", "d2", "v1"]
        );
    }

    #[test]
    fn an_override_takes_the_place_of_an_equal_rule_only() {
        let equal = [
            rule("dept", 500.0),
            FirewallRuleInput {
                protocol: Some("TCP".into()),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                direction: "INOUT".into(),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                src_ip_mask: Some("8".into()),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                action: "DROP".into(),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                src_ip_addr: Some(String::new()),
                ..rule("dept", 500.0)
            },
        ];
        for dept in equal {
            assert_eq!(
                names(std::slice::from_ref(&dept), &[overriding("own")]),
                ["own"],
                "{dept:?}"
            );
        }
        let other = [
            FirewallRuleInput {
                protocol: Some("udp".into()),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                protocol: None,
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                direction: "OUT".into(),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                dst_port_end: Some(22.0),
                ..rule("dept", 500.0)
            },
            FirewallRuleInput {
                src_ip_addr: Some("10.0.0.1".into()),
                ..rule("dept", 500.0)
            },
        ];
        for dept in other {
            let merged = [dept];
            assert_eq!(names(&merged, &[overriding("own")]), ["dept", "own"]);
        }
        assert_eq!(
            names(&[rule("dept", 500.0)], &[rule("own", 500.0)]),
            ["dept", "own"]
        );
    }

    #[test]
    fn a_malformed_override_removes_nothing() {
        let typo = FirewallRuleInput {
            src_ip_mask: Some("99".into()),
            ..overriding("own")
        };
        let typo = FirewallRuleInput {
            action: "DORP".into(),
            ..typo
        };
        assert_eq!(names(&[rule("dept", 500.0)], &[typo]), ["dept", "own"]);
    }
}

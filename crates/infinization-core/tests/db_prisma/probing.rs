//! What a client or its schema lacks is found before anything is asked of it.

use infinization_core::error::ErrorCode;
use serde_json::{Value, json};

use crate::kit::port::Answer::{Says, Throws};
use crate::kit::port::{error, known, script};
use crate::{database, of_node};

fn unknown(field: &str, model: &str) -> crate::kit::port::Answer {
    let message = format!(
        "Invalid\n\nUnknown field `{field}` for select statement on model `{model}`. Available options are marked with ?."
    );
    Throws(error(
        "PrismaClientValidationError",
        None,
        &message,
        Value::Null,
    ))
}

#[tokio::test]
async fn a_client_that_fits_is_asked_for_nobody() {
    let port = script([Says(json!([])), Says(Value::Null)]);
    of_node(&port).probe().await.unwrap();
    let asked = port.asked();
    assert!(
        asked[0]["absent"]
            .as_array()
            .unwrap()
            .contains(&json!("$transaction"))
    );
    assert_eq!(asked[1]["operation"], "findUnique");
    assert_eq!(
        asked[1]["args"]["where"]["id"],
        "00000000-0000-0000-0000-000000000000"
    );
    assert_eq!(asked[2]["args"]["where"]["nodeId"], "node-a");
    // The tables beside the machines': a client asks for relations only once it has found a row.
    let touched: Vec<&str> = asked[3..6]
        .iter()
        .map(|read| {
            let order = read["args"]["orderBy"][0].as_object().unwrap();
            order.keys().next().unwrap().as_str()
        })
        .collect();
    assert_eq!(touched, ["configuration", "department", "firewallRuleSet"]);
    assert_eq!(asked[6]["operation"], "findFirst");
    assert_eq!(asked.len(), 7);
}

#[tokio::test]
async fn b23_what_only_the_database_lacks_is_listed_too() {
    let absent = |sentence: &str, code: &str| {
        let driver = json!({ "driverAdapterError": { "cause": { "originalMessage": sentence } } });
        Throws(error(
            "PrismaClientKnownRequestError",
            Some(code),
            "Invalid",
            driver,
        ))
    };
    let port = script([
        Says(json!([])),
        Says(Value::Null),
        absent("column orderby_3.cpuPinning does not exist", "P2022"),
        absent("column orderby_9.bridge does not exist", "P2022"),
        Says(json!([])),
        Says(json!([])),
        Says(json!([])),
        absent("relation \"public.FirewallRule\" does not exist", "P2021"),
    ]);
    let refused = database(&port).probe().await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SchemaMismatch);
    let missing = [
        "MachineConfiguration.cpuPinning",
        "MachineConfiguration.bridge",
        "public.FirewallRule",
    ];
    assert_eq!(refused.details["missing"], json!(missing));
}

#[tokio::test]
async fn b23_everything_that_is_missing_is_listed_at_once() {
    let port = script([
        Says(json!([])),
        unknown("version", "Machine"),
        unknown("enableAudio", "MachineConfiguration"),
        unknown("overridesDept", "FirewallRule"),
        Says(Value::Null),
        Throws(error(
            "PrismaClientValidationError",
            None,
            "Unknown argument `nodeId`.",
            Value::Null,
        )),
    ]);
    let refused = of_node(&port).probe().await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SchemaMismatch);
    let missing = [
        "Machine.version",
        "MachineConfiguration.enableAudio",
        "FirewallRule.overridesDept",
        "nodeId",
    ];
    assert_eq!(refused.details["missing"], json!(missing));
    for name in missing {
        assert!(refused.message.contains(name), "{}", refused.message);
    }
    // It was asked without them in the end.
    let last = port.asked()[4]["args"]["select"].to_string();
    assert!(
        !last.contains("version")
            && !last.contains("enableAudio")
            && !last.contains("overridesDept")
    );
}

#[tokio::test]
async fn b23_missing_calls_are_listed_and_none_is_made() {
    let port = script([Says(json!(["machine.updateMany", "$transaction"]))]);
    let refused = database(&port).probe().await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SchemaMismatch);
    assert_eq!(
        refused.details["missing"],
        json!(["machine.updateMany", "$transaction"])
    );
    assert_eq!(port.asked().len(), 1);
}

#[tokio::test]
async fn a_client_that_repeats_itself_is_not_asked_for_ever() {
    let port = script([Says(json!([])), unknown("foreign", "Machine")]);
    let refused = database(&port).probe().await.unwrap_err();
    assert_eq!(refused.details["missing"], json!(["Machine.foreign"]));
    let port = script([Says(json!([])), unknown("version", "Machine")]);
    let refused = database(&port).probe().await.unwrap_err();
    assert_eq!(refused.details["missing"], json!(["Machine.version"]));
    assert_eq!(port.asked().len(), 3);
}

#[tokio::test]
async fn a_database_that_is_away_says_nothing_about_its_schema() {
    for (thrown, code) in [
        (known("P1001"), ErrorCode::DbConnectionError),
        (known("P2023"), ErrorCode::QueryFailed),
        (known("P2021"), ErrorCode::SchemaMismatch),
    ] {
        let port = script([Says(json!([])), Throws(thrown)]);
        assert_eq!(database(&port).probe().await.unwrap_err().code, code);
    }
}

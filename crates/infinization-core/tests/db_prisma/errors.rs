//! Every error of a client becomes one code, with no secret in it.

use std::time::Duration;

use infinization_core::db::port::PortError;
use infinization_core::db::{ConfigurationUpdate, Database, DbError};
use infinization_core::error::ErrorCode;
use infinization_core::types::Secret;
use serde_json::{Value, json};

use crate::database;
use crate::kit::port::Answer::{Hangs, Throws};
use crate::kit::port::{error, known, script, vm};

async fn both(thrown: PortError) -> [DbError; 2] {
    let port = script([Throws(thrown)]);
    let db = database(&port);
    [
        db.find_machine(&vm("vm-1")).await.unwrap_err(),
        db.update_machine_status(&vm("vm-1"), "off", &[])
            .await
            .unwrap_err(),
    ]
}

#[tokio::test]
async fn every_error_has_its_code() {
    use ErrorCode::{
        ConstraintViolation, DbConnectionError, MachineNotFound, QueryFailed, SchemaMismatch,
        UpdateFailed,
    };
    let driver = |code| error("DriverAdapterError", Some(code), "no", Value::Null);
    let of_server = |state| json!({ "driverAdapterError": { "cause": { "originalCode": state } } });
    let plain = |name: &str, code: Option<&str>| error(name, code, "no", Value::Null);
    let table = [
        (known("P2002"), ConstraintViolation, ConstraintViolation),
        (known("P2025"), MachineNotFound, MachineNotFound),
        (known("P2003"), MachineNotFound, MachineNotFound),
        (known("P2021"), SchemaMismatch, SchemaMismatch),
        (known("P2022"), SchemaMismatch, SchemaMismatch),
        (known("P2034"), QueryFailed, UpdateFailed),
        (known("P2000"), QueryFailed, UpdateFailed),
        (known("P1001"), DbConnectionError, DbConnectionError),
        (known("P1017"), DbConnectionError, DbConnectionError),
        (known("P2024"), DbConnectionError, DbConnectionError),
        (known("P2028"), DbConnectionError, DbConnectionError),
        (known("P2037"), DbConnectionError, DbConnectionError),
        (
            plain("PrismaClientInitializationError", None),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            plain("Error", Some("ECONNREFUSED")),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            plain("AggregateError", Some("ECONNREFUSED")),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            plain("TypeError", Some("UND_ERR_SOCKET")),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            plain("AbortError", None),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            driver("DatabaseNotReachable"),
            DbConnectionError,
            DbConnectionError,
        ),
        (driver("57P01"), DbConnectionError, DbConnectionError),
        (driver("08006"), DbConnectionError, DbConnectionError),
        // What Prisma 7 has no code for, with the server's own behind it.
        (
            error(
                "PrismaClientKnownRequestError",
                Some("P2039"),
                "no",
                of_server("57P01"),
            ),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            error(
                "Error",
                None,
                "Connection terminated unexpectedly",
                Value::Null,
            ),
            DbConnectionError,
            DbConnectionError,
        ),
        (driver("42501"), QueryFailed, UpdateFailed),
        (
            driver("UniqueConstraintViolation"),
            ConstraintViolation,
            ConstraintViolation,
        ),
        (
            plain("PrismaClientUnknownRequestError", None),
            QueryFailed,
            UpdateFailed,
        ),
        (
            plain("PrismaClientValidationError", None),
            QueryFailed,
            UpdateFailed,
        ),
        (plain("UnreadableAnswer", None), QueryFailed, UpdateFailed),
        (plain("TypeError", None), QueryFailed, UpdateFailed),
        (PortError::gone("no"), DbConnectionError, DbConnectionError),
    ];
    for (thrown, of_read, of_write) in table {
        let [read, write] = both(thrown.clone()).await;
        assert_eq!((read.code, write.code), (of_read, of_write), "{thrown:?}");
    }
}

#[tokio::test]
async fn prismas_own_code_and_facts_are_told() {
    let details =
        json!({ "modelName": "Machine", "target": ["internalName"], "cause": "who knows" });
    let mut thrown = known("P2002");
    thrown.details = details;
    let [read, _write] = both(thrown).await;
    let wanted =
        json!({ "prismaCode": "P2002", "modelName": "Machine", "target": ["internalName"] });
    assert_eq!(Value::Object(read.details), wanted);
    assert_eq!(
        read.message,
        "the database failed: It failed for P2002. (P2002)"
    );
    let [read, _write] = both(error("Error", Some("ECONNREFUSED"), "", Value::Null)).await;
    assert_eq!(read.details["errorCode"], "ECONNREFUSED");
}

#[tokio::test]
async fn the_servers_own_code_is_told_beside_the_clients() {
    let behind = json!({ "driverAdapterError": { "cause": { "originalCode": "53100" } } });
    let printed = "Error occurred during query execution:\nConnectorError(ConnectorError { user_facing_error: None, kind: QueryError(PostgresError { code: \"25006\", message: \"cannot execute UPDATE in a read-only transaction\" }) })";
    let client = "PrismaClientUnknownRequestError";
    for (thrown, code) in [
        (
            error("PrismaClientKnownRequestError", Some("P2010"), "no", behind),
            "53100",
        ),
        (error(client, None, printed, Value::Null), "25006"),
        (
            error("DriverAdapterError", Some("57014"), "no", Value::Null),
            "57014",
        ),
    ] {
        for error in both(thrown).await {
            assert_eq!(error.details["errorCode"], code);
        }
    }
}

#[tokio::test]
async fn b23_what_a_client_does_not_know_is_listed() {
    let invalid = |last: &str| {
        let message =
            format!("Invalid invocation:\n\n{{\n  select: {{ version: true }}\n}}\n\n{last}");
        error("PrismaClientValidationError", None, &message, Value::Null)
    };
    let with = |code: &str, details: Value| {
        error(
            "PrismaClientKnownRequestError",
            Some(code),
            "It is not there.",
            details,
        )
    };
    for (thrown, missing) in [
        (
            invalid(
                "Unknown field `version` for select statement on model `Machine`. Available options are marked with ?.",
            ),
            "Machine.version",
        ),
        (
            invalid("Unknown argument `nodeId`. Available options are marked with ?."),
            "nodeId",
        ),
        (
            with("P2021", json!({ "table": "public.Machine" })),
            "public.Machine",
        ),
        (
            with("P2022", json!({ "column": "Machine.version" })),
            "Machine.version",
        ),
        (with("P2022", Value::Null), "It is not there."),
        (
            error(
                PortError::MISSING,
                None,
                "no",
                json!({ "missing": ["machine.findUnique"] }),
            ),
            "machine.findUnique",
        ),
    ] {
        for error in both(thrown).await {
            assert_eq!(error.code, ErrorCode::SchemaMismatch, "{missing}");
            assert_eq!(error.details["missing"], json!([missing]));
            assert!(error.message.contains(missing), "{}", error.message);
        }
    }
}

#[tokio::test]
async fn i43_no_secret_leaves_with_an_error() {
    let update = || ConfigurationUpdate {
        graphic_password: Some(Some(Secret::new("hunter2"))),
        ..ConfigurationUpdate::default()
    };
    // A validation error prints its arguments; a driver may put a value into its words or facts.
    let words = [
        "Invalid invocation:\n\n{\n  create: { graphicPassword: \"hunter2\" }\n}\n\nArgument `qemuPid`: Invalid value.",
        "the value hunter2 is too long",
        "hunter2\n\n",
    ];
    for message in words {
        let details = json!({ "target": "hunter2", "modelName": { "deep": ["hunter2"] } });
        let port = script([Throws(error(
            "PrismaClientValidationError",
            Some("P2000"),
            message,
            details,
        ))]);
        let written = database(&port)
            .update_machine_configuration(&vm("vm-1"), update())
            .await;
        let told = format!("{:?}", written.unwrap_err());
        assert!(!told.contains("hunter2"), "{told}");
        assert!(told.contains("P2000"), "{told}");
    }
}

#[tokio::test]
async fn i43_no_secret_leaves_as_json_prints_it() {
    for secret in ["hun\"ter2", "hun\\ter2", "hun\nter2", "\"ter2\""] {
        let update = ConfigurationUpdate {
            graphic_password: Some(Some(Secret::new(secret))),
            ..ConfigurationUpdate::default()
        };
        let printed = json!(secret).to_string();
        let words = format!("{} graphicPassword: {printed}", "x".repeat(270));
        let details = json!({ "target": secret });
        let port = script([Throws(error("Error", Some("P2000"), &words, details))]);
        let db = database(&port);
        let written = db.update_machine_configuration(&vm("vm-1"), update).await;
        let told = format!("{:?}", written.unwrap_err());
        assert!(!told.contains("ter2"), "{told}");
        assert!(told.contains("P2000"), "{told}");
    }
}

#[tokio::test]
async fn a_message_is_one_line_of_bounded_length() {
    for message in [
        "x".repeat(1 << 20),
        "ä".repeat(5000),
        format!("a\n{}\n\n \n", "b".repeat(999)),
    ] {
        let [read, write] = both(error("Error", None, &message, Value::Null)).await;
        assert!(read.message.chars().count() < 400 && !read.message.contains('\n'));
        assert!(write.message.chars().count() < 400);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_no_connection() {
    let port = script([Hangs]);
    let error = database(&port).find_machine(&vm("vm-1")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DbConnectionError);
    assert!(error.message.contains("20000 ms"), "{}", error.message);
    let hasty = database(&port).answering_within(Duration::from_millis(5));
    let error = hasty
        .transition_vm_status(&vm("vm-1"), "off", "starting", 1)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::DbConnectionError);
    assert!(error.message.contains("5 ms"), "{}", error.message);
}

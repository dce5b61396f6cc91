//! A port whose answers are written down beforehand, and which remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use infinization_core::db::port::{Port, PortError};
use infinization_core::types::VmId;
use serde_json::{Value, json};

/// What a port does when it is asked.
#[derive(Debug, Clone)]
pub enum Answer {
    Says(Value),
    Throws(PortError),
    /// Nothing, ever.
    Hangs,
}

/// Answers in order; the last one again and again.
#[derive(Debug)]
pub struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<Value>>,
}

pub fn script(answers: impl IntoIterator<Item = Answer>) -> Arc<Script> {
    Arc::new(Script {
        answers: Mutex::new(answers.into_iter().collect()),
        asked: Mutex::default(),
    })
}

pub fn says(answer: Value) -> Arc<Script> {
    script([Answer::Says(answer)])
}

impl Script {
    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    fn next(&self) -> Answer {
        let mut answers = self.answers.lock().unwrap();
        if answers.len() > 1 {
            answers.pop_front().unwrap()
        } else {
            answers.front().unwrap().clone()
        }
    }
}

#[async_trait]
impl Port for Script {
    async fn call(&self, request: Value) -> Result<Value, PortError> {
        self.asked.lock().unwrap().push(request);
        match self.next() {
            Answer::Says(answer) => Ok(answer),
            Answer::Throws(error) => Err(error),
            Answer::Hangs => std::future::pending().await,
        }
    }
}

/// An error of the other side.
pub fn error(name: &str, code: Option<&str>, message: &str, details: Value) -> PortError {
    PortError {
        name: name.to_owned(),
        code: code.map(str::to_owned),
        message: message.to_owned(),
        details,
    }
}

/// One of Prisma's known errors.
pub fn known(code: &str) -> PortError {
    let message = format!("\nInvalid `machine.x()` invocation:\n\nIt failed for {code}.");
    error(
        "PrismaClientKnownRequestError",
        Some(code),
        &message,
        json!({ "modelName": "Machine" }),
    )
}

pub fn vm(id: &str) -> VmId {
    VmId::parse(id).unwrap()
}

/// A machine's whole row, as a client answers it.
pub fn row(id: &str, status: &str, version: i64) -> Value {
    json!({
        "id": id, "status": status, "name": "One", "internalName": id, "os": "ubuntu",
        "cpuCores": 2, "ramGB": 4, "diskSizeGB": 20, "gpuPciAddress": null, "version": version,
        "configuration": null, "firewallRuleSet": null, "department": null,
    })
}

//! The verbs for users who have no database of their own: the embedded store is their list of
//! machines.

use serde_json::{Map, Value, json};

use super::networks::refused;
use super::{Manager, Open, not_found, parse_id, to_value};
use crate::config::{DeleteOptions, MachineAddresses, parse_rules};
use crate::db::sqlite::{MachineSummary, SqliteDatabase, StoredMachine};
use crate::error::{ErrorCode, Failure};
use crate::secrets::{SecretsKey, invalid_key};
use crate::vm::Verb;

impl Manager {
    /// `listVMs`, oldest first.
    pub async fn list_vms(&self) -> Result<Value, Failure> {
        let open = self.open()?;
        let machines = open.store()?.list_machines().await?;
        Ok(machines
            .iter()
            .map(|machine| summary(&open, machine))
            .collect())
    }

    /// `getVM`, or null.
    pub async fn get_vm(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let machine = open.store()?.get_machine(&parse_id(&vm_id)?).await?;
        Ok(machine.map_or(Value::Null, |machine| details(&open, &machine)))
    }

    /// `deleteVM`: destroys the machine and deletes its row; its disks too if asked.
    pub async fn delete_vm(&self, vm_id: String, options: Value) -> Result<Value, Failure> {
        let open = self.open()?;
        let store = open.store()?;
        let vm_id = parse_id(&vm_id)?;
        let options = DeleteOptions::parse(&options)?.warned("deleteVM", &vm_id);
        store
            .get_machine(&vm_id)
            .await?
            .ok_or_else(|| not_found(&vm_id))?;
        let handle = open.handle(&vm_id)?;
        let with_data = options.delete_disks;
        let deleted = handle.verb(Verb::Delete { with_data }).await;
        open.drop_if_empty(&handle);
        to_value(&deleted?)
    }

    /// `rotateSecretsKey`. A refused key is told without a word of it.
    pub async fn rotate_secrets_key(&self, new: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let store = open.store()?;
        let new = SecretsKey::from_text(&new).map_err(|why| invalid_key("newKey", &why))?;
        Ok(store.rotate_key(new).await?.into())
    }

    /// `setFirewallRules`: stores the rules, and loads them if the VM runs.
    pub async fn set_firewall_rules(&self, vm_id: String, rules: Value) -> Result<Value, Failure> {
        let open = self.open()?;
        let store = open.store()?;
        let vm_id = parse_id(&vm_id)?;
        let rules = parse_rules(&rules)?;
        store
            .get_machine(&vm_id)
            .await?
            .ok_or_else(|| not_found(&vm_id))?;
        let handle = open.handle(&vm_id)?;
        to_value(&handle.verb(Verb::SetFirewallRules(rules)).await?)
    }

    /// `setAddresses`: keeps the addresses the VM may use, and holds it to them if it runs.
    pub async fn set_addresses(&self, vm_id: String, addresses: Value) -> Result<Value, Failure> {
        let addresses = MachineAddresses::parse(&addresses)
            .map_err(|why| refused("addresses", &why.to_string()))?;
        self.verb(&vm_id, Verb::SetAddresses(addresses)).await
    }
}

impl Open {
    fn store(&self) -> Result<&SqliteDatabase, Failure> {
        self.services.embedded.as_deref().ok_or_else(|| {
            let message =
                "machines are kept in your own database: list, change and delete them there";
            Failure::new(ErrorCode::InvalidState, message)
        })
    }
}

fn summary(open: &Open, machine: &MachineSummary) -> Value {
    let alive = crate::types::VmId::parse(machine.id.as_str()).is_ok_and(|vm_id| {
        open.vms()
            .get(&vm_id)
            .is_some_and(|handle| handle.view().live.is_some())
    });
    json!({
        "vmId": machine.id,
        "name": machine.name,
        "internalName": machine.internal_name,
        "os": machine.os,
        "status": machine.status,
        "cpuCores": machine.cpu_cores,
        "ramGB": machine.ram_gb,
        "diskSizeGB": machine.disk_size_gb,
        "processAlive": alive,
        "createdAt": machine.created_at,
        "updatedAt": machine.updated_at,
    })
}

fn details(open: &Open, machine: &StoredMachine) -> Value {
    let record = &machine.record;
    let summarized = MachineSummary {
        id: record.id.clone(),
        internal_name: record.internal_name.clone(),
        name: record.name.clone(),
        os: record.os.clone(),
        status: record.status.clone(),
        version: record.version,
        cpu_cores: record.cpu_cores,
        ram_gb: record.ram_gb,
        disk_size_gb: record.disk_size_gb,
        gpu_pci_address: record.gpu_pci_address.clone(),
        created_at: machine.created_at.clone(),
        updated_at: machine.updated_at.clone(),
    };
    let mut shown = summary(open, &summarized);
    let row = record.configuration.clone().unwrap_or_default();
    let rules = record
        .firewall_rule_set
        .as_ref()
        .map(|set| set.rules.clone())
        .unwrap_or_default();
    let more = json!({
        "bridge": row.bridge,
        "tapDevice": row.tap_device_name,
        "pid": row.qemu_pid,
        "qmpSocketPath": row.qmp_socket_path,
        "displayType": row.graphic_protocol,
        "displayPort": row.graphic_port,
        "displayAddr": row.graphic_host,
        "diskPaths": row.disk_paths,
        "firewallRules": rules,
    });
    if let (Some(shown), Value::Object(more)) = (shown.as_object_mut(), more) {
        shown.extend(Map::from_iter(more));
    }
    shown
}

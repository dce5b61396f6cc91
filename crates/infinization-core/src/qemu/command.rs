//! All switches of one VM, in order.

use std::fmt;

use super::args::{ToArgs, bare};
use super::balloon::VirtioBalloonPci;
use super::cpu::{Cpu, Smp};
use super::machine::{Action, Boot, Machine, Name, Pvpanic, Sandbox};
use super::memory::{Memory, MemoryBackend};
use super::pci::PcieRootPort;
use super::{Acquired, audio, chardev, disk, display, firmware, netdev, tpm, usb, vfio};
use crate::config::{DisplayProtocol, FirmwareConfig, GuestOs, VmConfig};

/// A program and its arguments, ready to be spawned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuCommand {
    /// Looked up in `PATH`.
    pub binary: String,
    /// Without the program's own name.
    pub args: Vec<String>,
}

impl QemuCommand {
    /// Guests are x86-64, whatever the host is.
    pub const BINARY: &str = "qemu-system-x86_64";

    /// The command line of `config` with what was acquired for this run.
    pub fn new(config: &VmConfig, acquired: &Acquired) -> Self {
        let args = [
            process(config),
            board(config, acquired),
            chardev::monitor(acquired.qmp),
            PcieRootPort::hotplug(config.machine)
                .iter()
                .flat_map(ToArgs::to_args)
                .collect(),
            disk::drives(config, &acquired.encrypted_disks),
            netdev::network(
                config.machine,
                &config.network,
                &acquired.tap,
                &acquired.vhost,
            ),
            display::display(config.machine, &config.display, &acquired.display),
            guest_channels(config, acquired),
            options(config, acquired),
        ];
        Self {
            binary: Self::BINARY.to_owned(),
            args: args.concat(),
        }
    }
}

/// What QEMU is as a process: its name, its limits, its start.
fn process(config: &VmConfig) -> Vec<String> {
    let name = Name {
        guest: &config.internal_name,
    };
    let mut args = name.to_args();
    if config.sandbox {
        args.extend(Sandbox.to_args());
    }
    // Nothing that is not written here: no default devices, no file in /etc.
    for switch in ["-nodefaults", "-no-user-config", "-S"] {
        args.extend(bare(switch));
    }
    args
}

/// Chipset, CPUs, memory, firmware.
fn board(config: &VmConfig, acquired: &Acquired) -> Vec<String> {
    let secure = config
        .firmware
        .as_ref()
        .is_some_and(FirmwareConfig::needs_smm);
    let backend = MemoryBackend::new(&config.memory, &acquired.host_nodes);
    let machine = Machine {
        r#type: config.machine,
        smm: secure && acquired.firmware.is_some(),
        memory_backend: backend.as_ref().map(|_| MemoryBackend::ID),
        pflash: acquired.firmware.is_some(),
    };
    let firmware = acquired.firmware.as_ref();
    [
        machine.to_args(),
        acquired.accelerator.to_args(),
        Cpu::new(&config.cpu.model, acquired.accelerator).to_args(),
        Smp::new(&config.cpu).to_args(),
        Memory {
            size: config.memory.size,
        }
        .to_args(),
        args_of(backend.as_ref()),
        args_of(config.uuid.as_ref()),
        firmware
            .map(|files| firmware::pflash(files, secure))
            .unwrap_or_default(),
        Boot.to_args(),
    ]
    .concat()
}

/// Everything host programs talk to the guest through.
fn guest_channels(config: &VmConfig, acquired: &Acquired) -> Vec<String> {
    let listeners = &acquired.channels;
    let spice = config.display.protocol == DisplayProtocol::Spice;
    let serial = listeners.serial_console.as_ref();
    [
        chardev::channels(config.machine, listeners, spice),
        serial.map(chardev::serial).unwrap_or_default(),
    ]
    .concat()
}

/// Devices a VM may do without.
fn options(config: &VmConfig, acquired: &Acquired) -> Vec<String> {
    let machine = config.machine;
    let mut args = Vec::new();
    if config.memory.balloon {
        args.extend(VirtioBalloonPci::new(machine).to_args());
    }
    if config.usb_tablet {
        args.extend(usb::tablet(machine));
    }
    if config.audio {
        args.extend(audio::audio(machine, config.display.protocol));
    }
    if let Some(socket) = &acquired.tpm_socket {
        args.extend(tpm::tpm(socket));
    }
    if let Some(gpu) = &config.gpu {
        args.extend(vfio::gpu(machine, gpu));
    }
    // Other guests would show an unknown device.
    if config.guest_os() == GuestOs::Linux {
        args.extend(Pvpanic::DEVICE.to_args());
        args.extend(Action.to_args());
    }
    args
}

fn args_of(switch: Option<&impl ToArgs>) -> Vec<String> {
    switch.map(ToArgs::to_args).unwrap_or_default()
}

/// One switch to a line, quoted for a shell: what people are shown and what golden texts hold.
impl fmt::Display for QemuCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.binary)?;
        for arg in &self.args {
            let separator = if arg.starts_with('-') { " \\\n  " } else { " " };
            write!(f, "{separator}{}", quoted(arg))?;
        }
        Ok(())
    }
}

fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+[]".contains(c);
    if arg.chars().all(plain) && !arg.is_empty() {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', r"'\''"))
    }
}

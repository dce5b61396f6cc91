//! Rules of everything that has a path or an address on the host.

use super::{Door, Rules};
use crate::config::draft::Draft;
use crate::config::{
    ChannelsConfig, FirmwareConfig, GpuConfig, LONGEST_SOCKET_PATH, MachineType, NbdServer,
    NetworkLocation, VmPaths,
};
use crate::types::{HostPath, InternalName, VmId};

impl Rules<'_> {
    /// Firmware is the distribution's, so `allowedPaths` does not confine it.
    pub(super) fn firmware(&self, draft: &Draft, machine: MachineType) -> Option<FirmwareConfig> {
        let code = draft.uefi.clone()?;
        let id = draft.id.as_ref()?;
        let vars = FirmwareConfig::vars_of(&self.context.disk_dir, id);
        let vars = self.report.check("uefiFirmware", vars)?;
        let firmware = FirmwareConfig { code, vars };
        if firmware.needs_smm() && machine == MachineType::Pc {
            let message = "enforces Secure Boot, which needs machineType q35";
            self.report.refuse("uefiFirmware", message);
        }
        Some(firmware)
    }

    pub(super) fn gpu(&self, draft: &Draft) -> Option<GpuConfig> {
        if let Some(romfile) = &draft.romfile {
            let rules = &self.context.path_rules;
            if !rules.allows_rom(romfile) {
                let message = format!("must be inside {}", rules.rom_dir);
                self.report.refuse("gpuRomfile", message);
            }
            if draft.gpu.is_none() {
                self.report.refuse("gpuRomfile", "needs gpuPciAddress");
            }
        }
        Some(GpuConfig {
            address: draft.gpu?,
            romfile: draft.romfile.clone(),
        })
    }

    pub(super) fn channels(&self, draft: &Draft) -> ChannelsConfig {
        let in_socket_dir = |field: &str, name: String| {
            let path = self.context.socket_dir.join(&name);
            self.report.check(field, path)
        };
        let generated =
            |id: &VmId| in_socket_dir("infiniServiceSocketPath", format!("{id}.socket"));
        let stored = self.door == Door::Stored;
        ChannelsConfig {
            guest_agent: draft.guest_agent.clone(),
            infini_service: draft
                .infini_service
                .clone()
                .or_else(|| draft.id.as_ref().filter(|_| stored).and_then(generated)),
            serial_console: draft
                .internal_name
                .as_ref()
                .filter(|_| draft.serial_console)
                .and_then(|name| in_socket_dir("serialConsole", format!("{name}-console.sock"))),
        }
    }

    pub(super) fn paths(&self, name: &InternalName) -> Option<VmPaths> {
        let qmp_socket = self.context.socket_dir.join(&format!("{name}.sock"));
        let pid_file = self.context.pid_dir.join(&format!("{name}.pid"));
        Some(VmPaths {
            qmp_socket: self.report.check("internalName", qmp_socket)?,
            pid_file: self.report.check("internalName", pid_file)?,
        })
    }

    /// Every socket has a path the kernel takes, and one of its own.
    pub(super) fn sockets(
        &self,
        draft: &Draft,
        channels: &ChannelsConfig,
        paths: Option<&VmPaths>,
    ) {
        let named = [
            ("internalName", paths.map(|paths| &paths.qmp_socket)),
            ("guestAgentSocketPath", channels.guest_agent.as_ref()),
            ("infiniServiceSocketPath", channels.infini_service.as_ref()),
            ("serialConsole", channels.serial_console.as_ref()),
            ("tpmSocketPath", draft.tpm_socket.as_ref()),
        ];
        let mut seen: Vec<&HostPath> = Vec::new();
        for (field, path) in named {
            let Some(path) = path else { continue };
            if path.as_str().len() > LONGEST_SOCKET_PATH {
                let message = format!(
                    "makes the socket path {path}, longer than {LONGEST_SOCKET_PATH} bytes"
                );
                self.report.refuse(field, message);
            }
            if seen.contains(&path) {
                self.report
                    .refuse(field, "must be a path no other socket has");
            }
            seen.push(path);
        }
    }

    pub(super) fn confine_isos(&self, draft: &Draft) {
        let isos = [
            ("isoPath", &draft.installer_iso),
            ("virtioDriversIso", &draft.drivers_iso),
        ];
        for (field, path) in isos {
            if let Some(path) = path {
                self.confine(field, path);
            }
        }
    }

    /// What a location names on this host. Ceph's own directory holds the host's configuration, as firmware is
    /// the distribution's; a configuration from elsewhere could have librados write logs anywhere.
    pub(super) fn confine_location(&self, field: &str, location: &NetworkLocation) {
        match location {
            NetworkLocation::Nbd(nbd) => {
                if let NbdServer::Unix(path) = &nbd.server {
                    self.confine(&format!("{field}.path"), path);
                }
            }
            NetworkLocation::Rbd(rbd) => {
                let conf = rbd.conf.as_ref();
                if let Some(conf) = conf.filter(|conf| !conf.as_path().starts_with("/etc/ceph")) {
                    self.confine(&format!("{field}.conf"), conf);
                }
            }
        }
    }

    pub(super) fn confine(&self, field: &str, path: &HostPath) {
        if !self.context.path_rules.allows(path) {
            self.report
                .refuse(field, "must be inside one of allowedPaths");
        }
    }
}

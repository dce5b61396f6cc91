//! UEFI firmware: which code, and where the variables of a VM are.

use serde::{Deserialize, Serialize};

use crate::types::{HostPath, InvalidValue, VmId};

/// UEFI firmware: the code, shared and read-only, and this VM's own variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirmwareConfig {
    /// `OVMF_CODE*.fd`.
    pub code: HostPath,
    /// `{diskDir}/uefi-vars-{vmId}.fd`, copied once from a template
    /// ([`FirmwareConfig::vars_templates`]).
    pub vars: HostPath,
}

/// Where distributions put OVMF.
const DISTRO_DIRS: [&str; 2] = ["/usr/share/OVMF", "/usr/share/edk2/ovmf"];

impl FirmwareConfig {
    /// Where the variables of a VM are.
    pub fn vars_of(disk_dir: &HostPath, id: &VmId) -> Result<HostPath, InvalidValue> {
        disk_dir.join(&format!("uefi-vars-{id}.fd"))
    }

    /// Whether the code is a build that enforces Secure Boot. Such a build keeps its variables
    /// behind system management mode, which only q35 has.
    pub fn needs_smm(&self) -> bool {
        let name = self.code_name();
        [".secboot", ".ms.", ".snakeoil"]
            .iter()
            .any(|mark| name.contains(mark))
    }

    /// Templates for the variables, best first: the file that belongs to the code, beside the code
    /// and then where distributions put it. Code and variables of different sizes do not work
    /// together, so a 4 MiB code names only 4 MiB variables.
    pub fn vars_templates(&self) -> Result<Vec<HostPath>, InvalidValue> {
        let exact = self.code_name().replacen("CODE", "VARS", 1);
        let size = if self.code_name().contains("_4M") {
            "_4M"
        } else {
            ""
        };
        // Debian has no variables of its own for ".secboot": they are the plain ones.
        let plain = format!("OVMF_VARS{size}.fd");
        let code = self.code.as_str();
        let beside = code.rsplit_once('/').map_or("/", |(dir, _)| dir);
        let mut templates = Vec::new();
        for dir in [beside].into_iter().chain(DISTRO_DIRS) {
            for name in [&exact, &plain] {
                let template = HostPath::parse(format!("{dir}/{name}"))?;
                if template != self.code && !templates.contains(&template) {
                    templates.push(template);
                }
            }
        }
        Ok(templates)
    }

    fn code_name(&self) -> &str {
        let code = self.code.as_str();
        code.rsplit_once('/').map_or(code, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firmware(code: &str) -> FirmwareConfig {
        FirmwareConfig {
            code: HostPath::parse(code).unwrap(),
            vars: HostPath::parse("/srv/uefi-vars-vm-1.fd").unwrap(),
        }
    }

    #[test]
    fn b37_variables_have_the_size_of_the_code() {
        let templates = |code: &str| -> Vec<String> {
            let paths = firmware(code).vars_templates().unwrap();
            paths.into_iter().map(String::from).collect()
        };
        assert_eq!(
            templates("/opt/fw/OVMF_CODE_4M.fd"),
            [
                "/opt/fw/OVMF_VARS_4M.fd",
                "/usr/share/OVMF/OVMF_VARS_4M.fd",
                "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd",
            ]
        );
        assert_eq!(
            templates("/usr/share/OVMF/OVMF_CODE.secboot.fd"),
            [
                "/usr/share/OVMF/OVMF_VARS.secboot.fd",
                "/usr/share/OVMF/OVMF_VARS.fd",
                "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd",
                "/usr/share/edk2/ovmf/OVMF_VARS.fd",
            ]
        );
    }

    #[test]
    fn b37_secure_boot_builds_are_known_by_name() {
        assert!(firmware("/usr/share/OVMF/OVMF_CODE_4M.ms.fd").needs_smm());
        assert!(firmware("/usr/share/OVMF/OVMF_CODE.secboot.fd").needs_smm());
        assert!(!firmware("/usr/share/OVMF/OVMF_CODE_4M.fd").needs_smm());
    }
}

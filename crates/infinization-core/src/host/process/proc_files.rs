//! What `/proc/<pid>/stat` and `/proc/<pid>/cmdline` say. Pure.

/// The fields of `/proc/<pid>/stat` that tell processes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// `R`, `S`, `D`, `T`, `Z`, …
    pub(super) state: u8,
    /// Field 22: clock ticks between boot and the process' start.
    pub(super) start_time: u64,
}

impl Stat {
    /// Reads one line. The command name may hold spaces and parentheses: it ends at the last one.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let after_name = line.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(line.get(after_name..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }

    /// Whether the process has ended and only waits to be reaped.
    pub(super) fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Whether a command line (NUL-separated) is QEMU's with `-name <name>`, compared element by
/// element: `vm-1` is not `vm-10`, and a path that mentions the name is not the name.
pub(super) fn is_qemu_named(cmdline: &[u8], name: &str) -> bool {
    is_qemu(cmdline) && value_of(cmdline, b"-name") == Some(name.as_bytes())
}

/// Whether a command line is a QEMU's.
pub(super) fn is_qemu(cmdline: &[u8]) -> bool {
    let program = cmdline.split(|byte| *byte == 0).next().unwrap_or_default();
    let file_name = program.rsplit(|byte| *byte == b'/').next();
    file_name.unwrap_or_default().starts_with(b"qemu")
}

/// The element after the first `switch`.
fn value_of<'a>(cmdline: &'a [u8], switch: &[u8]) -> Option<&'a [u8]> {
    let mut argv = cmdline.split(|byte| *byte == 0);
    argv.find(|element| *element == switch)?;
    argv.next()
}

/// What a QEMU that somebody else started has of its VM on its command line. Any one of them, as a
/// whole element or the first of its options, proves it; a part of a text proves nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuMarks {
    /// After `-name`: `vm-1`, `guest=vm-1` and either with further options.
    pub name: Option<String>,
    /// After `-pidfile`.
    pub pid_file: Option<String>,
    /// After `-qmp`: `unix:<path>` with any options.
    pub qmp_socket: Option<String>,
}

impl QemuMarks {
    /// Whatever of the three it is: the machine's internal name, its pidfile or its monitor's socket.
    pub fn any_of(token: &str) -> Self {
        let token = Some(token.to_owned());
        Self {
            name: token.clone(),
            pid_file: token.clone(),
            qmp_socket: token,
        }
    }

    /// Whether a command line (NUL-separated) has one of the marks.
    pub fn are_on(&self, cmdline: &[u8]) -> bool {
        let has = |switch: &[u8], wanted: Option<String>| {
            let value = value_of(cmdline, switch).unwrap_or_default();
            let first = value.split(|byte| *byte == b',').next();
            wanted.is_some_and(|wanted| first == Some(wanted.as_bytes()))
        };
        let name = &self.name;
        let socket = &self.qmp_socket;
        is_qemu(cmdline)
            && (has(b"-name", name.clone())
                || has(b"-name", name.as_ref().map(|name| format!("guest={name}")))
                || has(b"-pidfile", self.pid_file.clone())
                || has(b"-qmp", socket.as_ref().map(|path| format!("unix:{path}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "1 7 7 0 -1 4194304 100 0 0 0 1 2 3 4 20 0 5 0 123456 999 88";

    #[test]
    fn the_command_name_cannot_shift_the_fields() {
        for name in ["qemu", "a b", "x) Z 1 1", "((", "\u{fffd}"] {
            let line = format!("42 ({name}) S {TAIL}\n");
            let stat = Stat::parse(line.as_bytes()).unwrap();
            assert_eq!((stat.state, stat.start_time), (b'S', 123_456), "{name}");
        }
        assert!(
            Stat::parse(format!("42 (q) Z {TAIL}").as_bytes())
                .unwrap()
                .is_dead()
        );
        for bad in ["", "42", "42 (q)", "42 (q) S 1 2 3", "42 (q) S 1 7 7 0 -1"] {
            assert_eq!(Stat::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn f12_only_the_exact_element_after_name_counts() {
        let vm_1 = "guest=vm-1,debug-threads=on";
        let yes = [
            "/usr/bin/qemu-system-x86_64\0-S\0-name\0guest=vm-1,debug-threads=on\0-m\x0064\0",
            "qemu-kvm\0-name\0guest=vm-1,debug-threads=on\0",
        ];
        let no = [
            "",
            "\0",
            "qemu-system-x86_64\0-name\0guest=vm-10,debug-threads=on\0",
            "qemu-system-x86_64\0-name\0guest=vm-1,debug-threads=on,x=y\0",
            "qemu-system-x86_64\0-name\0",
            "qemu-system-x86_64\0-qmp\0guest=vm-1,debug-threads=on\0",
            "qemu-system-x86_64\0-append\0-name guest=vm-1,debug-threads=on\0",
            "vim\0-name\0guest=vm-1,debug-threads=on\0",
            "/opt/qemu/vim\0-name\0guest=vm-1,debug-threads=on\0",
        ];
        for cmdline in yes {
            assert!(is_qemu_named(cmdline.as_bytes(), vm_1), "{cmdline:?}");
        }
        for cmdline in no {
            assert!(!is_qemu_named(cmdline.as_bytes(), vm_1), "{cmdline:?}");
        }
    }

    #[test]
    fn f12_a_mark_is_a_whole_element_or_its_first_option() {
        let marks = QemuMarks {
            name: Some("vm-1".into()),
            pid_file: Some("/run/vm-1.pid".into()),
            qmp_socket: Some("/run/vm-1.sock".into()),
        };
        for cmdline in [
            "qemu-system-x86_64\0-name\0vm-1\0",
            "qemu-system-x86_64\0-name\0vm-1,process=x\0",
            "/usr/bin/qemu-system-x86_64\0-m\x0064\0-name\0guest=vm-1,debug-threads=on\0",
            "qemu-kvm\0-pidfile\0/run/vm-1.pid\0",
            "qemu-kvm\0-qmp\0unix:/run/vm-1.sock,server=on,wait=off\0",
        ] {
            assert!(marks.are_on(cmdline.as_bytes()), "{cmdline:?}");
        }
        for cmdline in [
            "",
            "qemu-system-x86_64\0-name\0vm-10\0",
            "qemu-system-x86_64\0-name\0guest=vm-1x\0",
            "qemu-system-x86_64\0-pidfile\0/run/vm-1.pid.old\0",
            "vim\0-name\0vm-1\0",
            "qemu-img\0convert\0vm-1\0",
        ] {
            assert!(!marks.are_on(cmdline.as_bytes()), "{cmdline:?}");
        }
        assert!(!QemuMarks::default().are_on(b"qemu-kvm\0-name\0\0"));
    }
}

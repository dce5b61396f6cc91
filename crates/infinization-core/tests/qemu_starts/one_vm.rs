//! One QEMU in a network of its own, and a conversation with its monitor.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use infinization_core::config::VmConfig;
use infinization_core::qemu::QemuCommand;
use serde_json::{Value, json};

use crate::acquire::{Extra, acquire, make_files};
use crate::configs::parse;
use crate::kit;

/// Longer than QEMU ever takes to answer on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs QEMU in a private network with `config` over the smallest VM; `{dir}` in a value is the
/// scratch directory.
pub(crate) fn starts(config: Value, check: impl Fn(&Vm, &mut Monitor) + Send + 'static) {
    starts_with(config, &Extra::default(), check);
}

pub(crate) fn starts_with(
    config: Value,
    extra: &Extra,
    check: impl Fn(&Vm, &mut Monitor) + Send + 'static,
) {
    let extra = extra.clone();
    private(move |dir| {
        let vm = Vm::spawn(dir, &config, &extra);
        let mut monitor = vm.monitor();
        check(&vm, &mut monitor);
        vm.quits(monitor);
    });
}

/// A scratch directory and a network of one's own, so that every VM may have port 5900.
pub(crate) fn private(test: impl FnOnce(&Path) + Send + 'static) {
    kit::in_private_network(async move || {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        test(dir.path());
    });
}

/// One running QEMU. Dropping it ends it.
pub(crate) struct Vm {
    pub(crate) dir: PathBuf,
    pub(crate) child: Child,
    _swtpm: Option<Swtpm>,
}

/// Descriptors are made inheritable just before a spawn; no other spawn may come between.
static SPAWN: Mutex<()> = Mutex::new(());

impl Vm {
    pub(crate) fn spawn(dir: &Path, overrides: &Value, extra: &Extra) -> Self {
        Self::spawn_config(dir, &parse(dir, overrides), extra)
    }

    pub(crate) fn spawn_config(dir: &Path, config: &VmConfig, extra: &Extra) -> Self {
        make_files(dir, config);
        let swtpm = config.tpm_socket.as_ref().map(|_| Swtpm::start(dir));
        let alone = SPAWN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handed = Vec::new();
        let acquired = acquire(dir, config, extra, &mut handed);
        let command = QemuCommand::new(config, &acquired);
        let mut process = Command::new(&command.binary);
        process
            .args(&command.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if config.run_as_user.is_some() {
            process.uid(65534).gid(65534);
        }
        let stderr = fs::File::create(dir.join("stderr")).unwrap();
        let child = process.stderr(stderr).spawn().unwrap();
        drop((handed, alone));
        Self {
            dir: dir.to_owned(),
            child,
            _swtpm: swtpm,
        }
    }

    pub(crate) fn monitor(&self) -> Monitor {
        let stream = UnixStream::connect(self.dir.join("vm-1.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Monitor {
            stream: BufReader::new(stream),
            stderr: self.dir.join("stderr"),
        };
        monitor.line().unwrap_or_else(|| monitor.ended());
        monitor.ask("qmp_capabilities", json!({}));
        let status = monitor.ask("query-status", json!({}));
        assert_eq!(status["status"], "prelaunch");
        monitor
    }

    pub(crate) fn quits(mut self, mut monitor: Monitor) {
        monitor.ask("quit", json!({}));
        while monitor.line().is_some() {}
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.words());
        assert_eq!(self.words(), "", "QEMU complained");
    }

    /// What QEMU says when it must not start.
    pub(crate) fn fails(mut self) -> String {
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "QEMU started");
        self.words()
    }

    /// What QEMU has written for people; only once it has ended.
    fn words(&self) -> String {
        fs::read_to_string(self.dir.join("stderr")).unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Ours and not yet reaped, or already gone.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A QMP conversation, without a client of ours in between.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    stderr: PathBuf,
}

impl Monitor {
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").unwrap();
        loop {
            let mut reply = self.line().unwrap_or_else(|| self.ended());
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(answer) = reply.get_mut("return") {
                return answer.take();
            }
        }
    }

    fn ended(&self) -> ! {
        panic!("QEMU ended: {}", fs::read_to_string(&self.stderr).unwrap());
    }

    /// The next reply or event; `None` when QEMU is gone.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the monitor is silent: {error}"),
        }
    }
}

/// A TPM emulator, which ends with its QEMU.
struct Swtpm {
    state: tempfile::TempDir,
}

impl Swtpm {
    /// `--daemon` returns when the socket is there. The socket's path is relative, because swtpm
    /// splits its options at commas and the test's directory may hold anything.
    fn start(dir: &Path) -> Self {
        let state = tempfile::tempdir().unwrap();
        let at = state.path().display();
        let started = Command::new("swtpm")
            .current_dir(dir)
            .args(["socket", "--tpm2", "--daemon", "--terminate"])
            .args(["--ctrl", "type=unixio,path=tpm.sock"])
            .args(["--tpmstate", &format!("dir={at}")])
            .args(["--pid", &format!("file={at}/pid")])
            .status()
            .unwrap();
        assert!(started.success());
        Self { state }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // It removes its pidfile when it ends by itself.
        if let Ok(pid) = fs::read_to_string(self.state.path().join("pid")) {
            let _gone = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

/// Reads a console until a line holds `mark`.
pub(crate) fn lines_until(console: &UnixStream, mark: &str) -> Vec<String> {
    let mut told = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        told.push(String::from_utf8_lossy(&line.unwrap()).trim().to_owned());
        if told.last().unwrap().contains(mark) {
            break;
        }
    }
    told
}

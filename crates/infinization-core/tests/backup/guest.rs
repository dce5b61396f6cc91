//! A QEMU in whose disks the tests write, and backups of it.

use infinization_core::qmp::EventReceiver;

use super::*;
use crate::kit::qmp::Qemu;

/// A QEMU with these disks, whose guest does not run: the test writes in its place.
pub(super) struct Guest {
    pub(super) qemu: Qemu,
    pub(super) monitor: QmpClient,
    _events: EventReceiver,
}

impl Guest {
    pub(super) async fn start(disks: &[&Disk]) -> Self {
        let file = |disk: &Disk| {
            let file = disk::text(&disk.path);
            format!("file.driver=file,file.filename={file}")
        };
        Self::start_on(disks, file).await
    }

    /// The `sector`th sector of the disk's file cannot be read.
    pub(super) async fn start_broken(disk: &Disk, sector: u64) -> Self {
        let file = |disk: &Disk| {
            let file = disk::text(&disk.path);
            format!(
                "file.driver=blkdebug,file.image.driver=file,file.image.filename={file},\
                 file.inject-error.0.event=none,file.inject-error.0.iotype=read,\
                 file.inject-error.0.errno=5,file.inject-error.0.sector={sector}"
            )
        };
        Self::start_on(&[disk], file).await
    }

    async fn start_on(disks: &[&Disk], file: impl Fn(&Disk) -> String) -> Self {
        let mut args = Vec::new();
        for (n, disk) in disks.iter().enumerate() {
            let (format, file) = (disk.format, file(disk));
            args.push("-blockdev".to_owned());
            args.push(format!(
                "driver={format},node-name=d{n},discard=unmap,{file}"
            ));
            args.push("-device".to_owned());
            args.push(format!("virtio-blk-pci,id=v{n},drive=d{n}"));
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let qemu = Qemu::start(&args);
        let (monitor, events) = qemu.connect().await;
        Self {
            qemu,
            monitor,
            _events: events,
        }
    }

    /// Writes through QEMU, as a guest does.
    pub(super) async fn write(
        &self,
        n: usize,
        disk: &mut Disk,
        at: usize,
        length: usize,
        byte: u8,
    ) {
        self.io(n, &format!("write -P {byte} {at} {length}")).await;
        disk.model(at, length, byte);
    }

    pub(super) async fn zero(&self, n: usize, disk: &mut Disk, at: usize, length: usize) {
        self.io(n, &format!("write -z -u {at} {length}")).await;
        disk.model(at, length, 0);
    }

    pub(super) async fn io(&self, n: usize, command: &str) {
        let told = self
            .human(&format!(
                "qemu-io -d /machine/peripheral/v{n}/virtio-backend \"{command}\""
            ))
            .await;
        assert_eq!(told, "\"\"", "{command}");
    }

    pub(super) async fn human(&self, line: &str) -> String {
        let arguments = json!({ "command-line": line });
        let answer = self
            .monitor
            .execute("human-monitor-command", arguments)
            .await
            .unwrap();
        answer.get().to_owned()
    }

    pub(super) fn machine(&self) -> Arc<Running> {
        Running::new(&self.monitor, Ok(None))
    }

    /// The names of our bitmaps on disk `n`.
    pub(super) async fn bitmaps(&self, n: usize) -> Vec<String> {
        let answer = self
            .monitor
            .execute("query-named-block-nodes", json!({}))
            .await
            .unwrap();
        let nodes: Value = serde_json::from_str(answer.get()).unwrap();
        let nodes = nodes.as_array().unwrap();
        let node = nodes
            .iter()
            .find(|node| node["node-name"] == json!(format!("d{n}")));
        let bitmaps = node.unwrap()["dirty-bitmaps"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        bitmaps
            .iter()
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Whether QEMU has any node, job or key of a backup.
    pub(super) async fn has_leftovers(&self) -> bool {
        let nodes = self
            .monitor
            .execute("query-named-block-nodes", json!({}))
            .await
            .unwrap();
        let jobs = self.monitor.execute("query-jobs", json!({})).await.unwrap();
        let objects = self.monitor.objects().await.unwrap();
        nodes.get().contains("\"infz-bk-")
            || jobs.get().contains("infz-bk-")
            || objects.iter().any(|object| object.starts_with("infz-bk-"))
    }

    pub(super) async fn quit(self) {
        self.monitor.quit().await.unwrap();
        self.qemu.ended().await;
    }
}

impl Place {
    pub(super) async fn live(
        &self,
        kind: &str,
        disks: &[&Disk],
        parent: Option<&str>,
        guest: &Guest,
    ) -> String {
        let mut request = self.request(kind, disks);
        request["parentBackupId"] = json!(parent);
        id(&self.create_with(request, guest.machine()).await.unwrap())
    }
}

//! What images lie on, told while it changes.

use std::collections::HashSet;
use std::io;
use std::sync::Barrier;
use std::thread;

use infinization_core::host::qemu_img::files_below;

use super::{HostPath, Images, fs, path_in, qemu_img, symlink};

impl Images {
    fn overlay(&self, name: &str, on: &HostPath) -> HostPath {
        let path = self.path(name);
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
        qemu_img(&[&create[..], &[on.as_str(), path.as_str()]].concat());
        path
    }
}

/// What lies on a layer is put onto that one's own base, then the layer is removed; and the other way round.
struct Merging {
    top: HostPath,
    on_layer: HostPath,
    on_base: HostPath,
    layer: HostPath,
    kept: HostPath,
}

impl Merging {
    fn merge(&self) -> io::Result<()> {
        put(&self.on_base, &self.top)?;
        fs::remove_file(self.layer.as_path())
    }

    fn branch(&self) -> io::Result<()> {
        put(&self.kept, &self.layer)?;
        put(&self.on_layer, &self.top)
    }
}

fn put(what: &HostPath, at: &HostPath) -> io::Result<()> {
    let beside = format!("{at}.new");
    fs::copy(what.as_path(), &beside)?;
    fs::rename(beside, at.as_path())
}

#[test]
fn a_base_is_below_its_overlays_whatever_is_merged_meanwhile() {
    const ROUNDS: u32 = 1_500;
    let images = Images::new();
    let base = images.qcow2("base.qcow2");
    let layer = images.overlay("layer.qcow2", &base);
    let merging = Merging {
        top: images.overlay("top.qcow2", &layer),
        on_layer: images.overlay("on-layer.qcow2", &layer),
        on_base: images.overlay("on-base.qcow2", &base),
        kept: images.overlay("kept.qcow2", &base),
        layer,
    };
    let base = base.as_path().canonicalize().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let begin = Barrier::new(2);
    let seen: Vec<_> = thread::scope(|scope| {
        let change = |round| {
            begin.wait();
            match round % 2 {
                0 => merging.merge(),
                _ => merging.branch(),
            }
        };
        // Neither leaves the other waiting if something fails.
        let changing = scope.spawn(move || (0..ROUNDS).map(change).collect::<Vec<_>>());
        let look = |round| {
            begin.wait();
            // The change is met at each of its moments.
            (0..round % 64 * 100).for_each(|_| std::hint::spin_loop());
            runtime.block_on(files_below(&merging.top))
        };
        let seen = (0..ROUNDS).map(look).collect();
        let changed = changing.join().unwrap();
        changed.into_iter().for_each(Result::unwrap);
        seen
    });
    let seen: Vec<_> = seen.into_iter().map(Result::unwrap).collect();
    for below in &seen {
        assert!(below.iter().any(|file| file.as_path() == base), "{below:?}");
    }
    let lengths: HashSet<_> = seen.iter().map(Vec::len).collect();
    assert_eq!(lengths, HashSet::from([1, 2]), "both chains were seen");
}

/// As QEMU finds it, which does not ask where a link leads.
#[tokio::test]
async fn a_relative_name_starts_where_a_symbolic_link_lies() {
    let images = Images::new();
    for folder in ["store", "links"] {
        fs::create_dir(images.path(folder).as_path()).unwrap();
    }
    let base = images.qcow2("links/base.qcow2");
    let store = images.overlay("store/top.qcow2", &base);
    let (top, name) = (images.path("links/top.qcow2"), "base.qcow2");
    symlink(store.as_path(), top.as_path()).unwrap();
    let rename = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name];
    qemu_img(&[&rename[..], &[store.as_str()]].concat());
    let copy = images.path("copy.raw");
    qemu_img(&["convert", "-f", "qcow2", top.as_str(), copy.as_str()]);
    let base = base.as_path().canonicalize().unwrap();
    let below = files_below(&top).await.unwrap();
    assert_eq!(below, [path_in(base.parent().unwrap(), name)]);
}

#[tokio::test]
async fn nothing_is_below_a_file_that_is_gone() {
    let images = Images::new();
    let base = images.qcow2("base.qcow2");
    let top = images.overlay("top.qcow2", &base);
    fs::remove_file(base.as_path()).unwrap();
    assert_eq!(files_below(&top).await.unwrap(), Vec::new());
    fs::remove_file(top.as_path()).unwrap();
    assert_eq!(files_below(&top).await.unwrap(), Vec::new());
}

//! F12: the disk is full for a while.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::lock::check_integrity;
use super::{faults, judge, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};
use crate::support::process::Launch;

faults! {
    sqlite: f12_disk_full;
}

async fn f12_disk_full(_: Engine) {
    let disk = SmallDisk::mount();
    let url = format!("sqlite://{}/tombola.db", disk.path().display());
    let launch = Launch::on(&url);
    let server = launch.start().await;
    let sale = Sale::open(&launch, 3000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 3100);
    for _ in 0..2 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 200).await;
        let filler = disk.fill();
        let known = crowd.troubles();
        crowd.until_troubled(known + 200).await;
        std::fs::remove_file(filler).unwrap();
        let before = crowd.taken().len();
        crowd.until_taken(before + 50).await;
    }
    let ledger = crowd.finish().await;
    let database = session(&url).await;
    check_integrity(&database).await;
    database.close().await.unwrap();
    judge(&url, &sale, &ledger).await.stands().without_errors();
}

/// A file system of 32 MiB in memory, unmounted at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"])
            .arg(directory.path())
            .output()
            .expect("the mount command");
        let error = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test must be allowed to mount a small disk: {error}");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills the disk to the last byte; answers the file to remove.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.path().join("filler");
        let mut filler = File::create(&path).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            let zeros = vec![0; size];
            while filler.write_all(&zeros).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

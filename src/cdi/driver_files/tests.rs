//! A driver root is made of empty files; what they say does not matter.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const VERSION: &str = "580.95.05";

struct Driver {
    dir: TempDir,
}

impl Driver {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(self, path: &str) -> Self {
        let path = self.dir.path().join(path.replace("VERSION", VERSION));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        self
    }

    fn program(self, path: &str) -> Self {
        let driver = self.file(path);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(driver.dir.path().join(path), mode).unwrap();
        driver
    }

    fn link(self, path: &str, target: &str) -> Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target.replace("VERSION", VERSION), path).unwrap();
        self
    }

    fn search(&self) -> Search {
        Search {
            driver_root: self.dir.path().to_owned(),
            host_driver_root: "/run/nvidia/driver".into(),
            version: VERSION.to_owned(),
            library: self.dir.path().join("usr/lib64/libnvidia-ml.so.580.95.05"),
            hook: None,
        }
    }

    fn find(&self) -> DriverFiles {
        self.search().find()
    }
}

fn places(files: &[File]) -> Vec<(&str, &str)> {
    files.iter().map(|file| (file.host.to_str().unwrap(), file.container.to_str().unwrap())).collect()
}

fn links(files: &DriverFiles) -> Vec<(&str, &str)> {
    files.links.iter().map(|link| (link.path.to_str().unwrap(), link.target.as_str())).collect()
}

#[test]
fn libraries_are_those_of_this_version() {
    let driver = Driver::new()
        .file("usr/lib64/libnvidia-ml.so.VERSION")
        .file("usr/lib64/libcuda.so.VERSION")
        .file("usr/lib64/libcuda.so.570.1")
        .file("usr/lib64/libc.so.6")
        .file("usr/lib64/libnvidia-nvvm70.so.4")
        .file("usr/lib/x86_64-linux-gnu/libnvidia-sandboxutils.so.VERSION");
    assert_eq!(
        places(&driver.find().libraries),
        [
            ("/run/nvidia/driver/usr/lib64/libcuda.so.580.95.05", "/usr/lib64/libcuda.so.580.95.05"),
            (
                "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.580.95.05",
                "/usr/lib64/libnvidia-ml.so.580.95.05"
            ),
            ("/run/nvidia/driver/usr/lib64/libnvidia-nvvm70.so.4", "/usr/lib64/libnvidia-nvvm70.so.4"),
            (
                "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-sandboxutils.so.580.95.05",
                "/usr/lib/x86_64-linux-gnu/libnvidia-sandboxutils.so.580.95.05"
            ),
        ]
    );
}

#[test]
fn nvmls_own_folder_counts_before_others() {
    let driver = Driver::new()
        .file("odd/place/libcuda.so.VERSION")
        .file("usr/lib64/libcuda.so.VERSION")
        .file("usr/lib/libcuda.so.VERSION");
    let mut search = driver.search();
    assert_eq!(places(&search.find().libraries)[0].1, "/usr/lib64/libcuda.so.580.95.05");
    search.library = driver.dir.path().join("odd/place/libnvidia-ml.so.1");
    assert_eq!(places(&search.find().libraries).len(), 1);
    assert_eq!(places(&search.find().libraries)[0].1, "/odd/place/libcuda.so.580.95.05");
}

#[test]
fn folders_that_are_links_are_looked_into_once() {
    let driver = Driver::new().file("usr/lib64/libcuda.so.VERSION").link("lib64", "usr/lib64");
    let mut search = driver.search();
    search.library = driver.dir.path().join("lib64/libnvidia-ml.so.1");
    assert_eq!(places(&search.find().libraries)[0].1, "/usr/lib64/libcuda.so.580.95.05");
    assert_eq!(search.find().libraries.len(), 1);
}

#[test]
fn files_are_named_on_the_host_without_links() {
    let driver = Driver::new()
        .file("nix/store/x/libcuda.so.VERSION")
        .link("run/opengl-driver/lib/libcuda.so.580.95.05", "/nix/store/x/libcuda.so.VERSION");
    let files = driver.find();
    let real = "/run/nvidia/driver/nix/store/x/libcuda.so.580.95.05";
    assert_eq!(places(&files.libraries), [(real, "/run/opengl-driver/lib/libcuda.so.580.95.05")]);
}

#[test]
fn links_are_those_of_the_node_and_those_that_programs_need() {
    let driver = Driver::new()
        .file("usr/lib64/libcuda.so.VERSION")
        .file("usr/lib64/libnvidia-ml.so.VERSION")
        .file("usr/lib64/libnvidia-new.so.VERSION")
        .link("usr/lib64/libnvidia-new.so.7", "libnvidia-new.so.VERSION")
        .link("usr/lib64/libnvidia-ml.so.1", "/usr/lib64/libnvidia-ml.so.VERSION")
        .link("usr/lib64/libother.so.1", "libother.so.1.2")
        .link("usr/lib64/libdead.so", "libcuda.so.570.1");
    let files = driver.find();
    assert_eq!(
        links(&files),
        [
            ("/usr/lib64/libcuda.so", "libcuda.so.1"),
            ("/usr/lib64/libcuda.so.1", "libcuda.so.580.95.05"),
            ("/usr/lib64/libnvidia-ml.so.1", "/usr/lib64/libnvidia-ml.so.580.95.05"),
            ("/usr/lib64/libnvidia-new.so.7", "libnvidia-new.so.580.95.05"),
        ]
    );
    assert_eq!(files.links[0].host, Path::new("/run/nvidia/driver/usr/lib64/libcuda.so.580.95.05"));
}

#[test]
fn a_link_in_another_folder_leads_to_the_file_itself() {
    let driver = Driver::new()
        .file("usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.VERSION")
        .link("etc/alternatives/libcuda", "/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.VERSION")
        .link("usr/lib/x86_64-linux-gnu/libcuda.so.1", "/etc/alternatives/libcuda");
    let file = "/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.580.95.05";
    let files = driver.find();
    assert_eq!(links(&files)[0], ("/usr/lib/x86_64-linux-gnu/libcuda.so.1", file));
    assert_eq!(links(&files).len(), 3);
}

#[test]
fn tools_have_to_be_programs() {
    let driver = Driver::new()
        .program("usr/bin/nvidia-smi")
        .file("usr/bin/nvidia-debugdump")
        .program("opt/bin/nvidia-persistenced")
        .program("usr/bin/other");
    assert_eq!(
        places(&driver.find().tools),
        [
            ("/run/nvidia/driver/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"),
            ("/run/nvidia/driver/opt/bin/nvidia-persistenced", "/opt/bin/nvidia-persistenced"),
        ]
    );
}

#[test]
fn firmware_sockets_and_settings_are_found() {
    let driver = Driver::new()
        .file("usr/lib/firmware/nvidia/580.95.05/gsp_ga10x.bin")
        .file("usr/lib/firmware/nvidia/580.95.05/README")
        .file("usr/lib/firmware/nvidia/570.1/gsp_tu10x.bin")
        .file("run/nvidia-persistenced/socket")
        .link("var/run", "/run")
        .file("etc/OpenCL/vendors/nvidia.icd");
    let files = driver.find();
    let firmware = "/run/nvidia/driver/usr/lib/firmware/nvidia/580.95.05/gsp_ga10x.bin";
    assert_eq!(places(&files.firmware), [(firmware, "/lib/firmware/nvidia/580.95.05/gsp_ga10x.bin")]);
    let socket = "/run/nvidia/driver/run/nvidia-persistenced/socket";
    assert_eq!(places(&files.sockets), [(socket, "/run/nvidia-persistenced/socket")]);
    assert_eq!(places(&files.configs)[0].1, "/etc/OpenCL/vendors/nvidia.icd");
}

#[test]
fn the_hook_is_taken_at_its_word_or_looked_for_on_the_host() {
    let driver = Driver::new().program("usr/bin/nvidia-ctk");
    let mut search = driver.search();
    assert_eq!(search.find().hook, None);
    search.host_driver_root = "/".into();
    assert_eq!(search.find().hook, Some("/usr/bin/nvidia-ctk".into()));
    let driver = driver.program("usr/bin/nvidia-cdi-hook");
    assert_eq!(search.find().hook, Some("/usr/bin/nvidia-cdi-hook".into()));
    let named = Search { hook: Some("/opt/hook".into()), ..driver.search() };
    assert_eq!(named.find().hook, Some("/opt/hook".into()));
    assert_eq!(named.find().hook_missing, None);
}

#[test]
fn the_hook_is_found_where_the_gpu_operator_and_a_local_installation_put_it() {
    let driver = Driver::new().program("usr/local/bin/nvidia-cdi-hook");
    let search = Search { host_driver_root: "/".into(), ..driver.search() };
    assert_eq!(search.find().hook, Some("/usr/local/bin/nvidia-cdi-hook".into()));
    let before = search.fingerprint();
    let driver = driver.program("usr/local/nvidia/toolkit/nvidia-cdi-hook");
    assert_ne!(search.fingerprint(), before);
    assert_eq!(search.find().hook, Some("/usr/local/nvidia/toolkit/nvidia-cdi-hook".into()));
    // A file that the runtime could not run is none, and the large program is the last resort.
    let driver = driver.program("usr/bin/nvidia-ctk").file("usr/bin/nvidia-cdi-hook");
    assert_eq!(search.find().hook, Some("/usr/local/nvidia/toolkit/nvidia-cdi-hook".into()));
    assert_eq!(search.find().hook_missing, None);
    drop(driver);
}

#[test]
fn a_hook_that_is_missing_is_said_with_what_it_costs() {
    let driver = Driver::new();
    let mut search = driver.search();
    let missing = |search: &Search| search.find().hook_missing.unwrap_or_default();
    assert!(missing(&search).starts_with("the driver root /run/nvidia/driver is not the host's own"));
    search.host_driver_root = "/".into();
    assert_eq!(
        missing(&search),
        "there is no nvidia-cdi-hook or nvidia-ctk in /usr/bin, /usr/local/nvidia/toolkit, /usr/local/bin: links and \
         the loader's cache are not made in containers that get a device by CDI; --nvidia-cdi-hook-path names \
         NVIDIA's hook program"
    );
    search.hook = Some("/opt/bin/hook".into());
    assert!(missing(&search).starts_with("/opt/bin/hook is no program on the host"));
    let before = search.fingerprint();
    let _driver = driver.program("opt/bin/hook");
    assert_eq!((missing(&search), search.find().hook), (String::new(), Some("/opt/bin/hook".into())));
    assert_ne!(search.fingerprint(), before);
}

#[test]
fn an_empty_root_has_nothing() {
    assert_eq!(DriverFiles { hook_missing: None, ..Driver::new().find() }, DriverFiles::default());
}

#[test]
fn the_fingerprint_changes_with_the_folders() {
    let driver = Driver::new().file("usr/lib64/libcuda.so.VERSION");
    let search = driver.search();
    let before = search.fingerprint();
    assert_eq!(search.fingerprint(), before);
    let driver = driver.file("run/nvidia-persistenced/socket");
    let with_socket = search.fingerprint();
    assert_ne!(with_socket, before);
    // The kernel's time stamps move in steps; a folder that was not there before needs none.
    let _driver = driver.file("usr/bin/nvidia-smi");
    assert_ne!(search.fingerprint(), with_socket);
}

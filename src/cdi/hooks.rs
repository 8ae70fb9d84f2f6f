//! The driver's files in a container, and what is done there once they are in it. Pure.

use std::collections::BTreeSet;
use std::path::Path;

use super::CdiOptions;
use super::driver_files::{DriverFiles, File, Link};
use super::spec::{ContainerEdits, Hook, Mount};

/// The hooks of NVIDIA's container toolkit that we ask for, by the names it gives them.
const CREATE_SYMLINKS: &str = "create-symlinks";
const ENABLE_CUDA_COMPAT: &str = "enable-cuda-compat";
const UPDATE_LDCACHE: &str = "update-ldcache";
const DISABLE_DEVICE_NODE_MODIFICATION: &str = "disable-device-node-modification";

/// Files are for reading; nobody else sees what is mounted over them later.
pub(super) const FILE_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

/// As NVIDIA's toolkit mounts sockets. That they are not read-only makes no difference to who may connect: that is a
/// matter of the socket's own mode, and a read-only mount does not hinder it.
const SOCKET_OPTIONS: [&str; 5] = ["nosuid", "nodev", "noexec", "rbind", "rprivate"];

/// Mounts, hooks and variables for every container that has a device.
pub(super) fn edits(files: &DriverFiles, driver_version: &str, options: &CdiOptions) -> ContainerEdits {
    let folders: BTreeSet<&Path> =
        files.libraries.iter().filter_map(|file| file.container.parent()).collect();
    let folders: Vec<String> = folders.into_iter().map(|folder| folder.display().to_string()).collect();
    let mut env = Vec::new();
    if !folders.is_empty() {
        // Where NVIDIA's tools, and people, find the driver's libraries in the container.
        env.push(format!("NVIDIA_CTK_LIBCUDA_DIR={}", folders.join(":")));
    }
    // Keeps the NVIDIA container runtime from adding devices of its own for what the image says.
    env.push("NVIDIA_VISIBLE_DEVICES=void".to_owned());
    let mut mounts: Vec<Mount> = [&files.libraries, &files.tools, &files.firmware, &files.configs]
        .into_iter()
        .flatten()
        .map(|file| mount(file, &FILE_OPTIONS))
        .collect();
    mounts.extend(files.sockets.iter().map(|file| mount(file, &SOCKET_OPTIONS)));
    let hooks = match &files.hook {
        Some(program) => hooks(program, &files.links, &folders, driver_version, options),
        None => Vec::new(),
    };
    if hooks.iter().all(|hook| !hook.args.iter().any(|argument| argument == CREATE_SYMLINKS)) {
        // Nobody makes the links, so the file is mounted once more by the link's name. A program that loads
        // the library by it does not see the difference.
        mounts.extend(files.links.iter().map(|link| {
            mount(&File { host: link.host.clone(), container: link.path.clone() }, &FILE_OPTIONS)
        }));
    }
    mounts.sort_by(|a, b| a.container_path.cmp(&b.container_path));
    mounts.dedup_by(|a, b| a.container_path == b.container_path);
    ContainerEdits { env, device_nodes: Vec::new(), mounts, hooks }
}

pub(super) fn mount(file: &File, options: &[&str]) -> Mount {
    Mount {
        host_path: file.host.clone(),
        container_path: file.container.clone(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

/// In this order: links first, since the cache of libraries is made from what is there then.
fn hooks(
    program: &Path,
    links: &[Link],
    folders: &[String],
    driver_version: &str,
    options: &CdiOptions,
) -> Vec<Hook> {
    let links = links.iter().map(|link| format!("{}::{}", link.target, link.path.display()));
    let links: Vec<String> = links.flat_map(|link| ["--link".to_owned(), link]).collect();
    let folders: Vec<String> =
        folders.iter().flat_map(|folder| ["--folder".to_owned(), folder.clone()]).collect();
    let version = vec![format!("--host-driver-version={driver_version}")];
    let hooks = [
        (CREATE_SYMLINKS, (!links.is_empty()).then_some(links)),
        (ENABLE_CUDA_COMPAT, (!driver_version.is_empty()).then_some(version)),
        (UPDATE_LDCACHE, (!folders.is_empty()).then_some(folders)),
        (DISABLE_DEVICE_NODE_MODIFICATION, Some(Vec::new())),
    ];
    let wanted = hooks
        .into_iter()
        .filter(|(name, _)| options.wants_hooks() && !options.disabled_hooks.contains(*name));
    wanted.filter_map(|(name, arguments)| Some(hook(program, name, arguments?))).collect()
}

fn hook(program: &Path, name: &str, arguments: Vec<String>) -> Hook {
    let own_name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // The toolkit's large program has the hooks below a word of its own; the small one has nothing else.
    let word = (own_name == "nvidia-ctk").then(|| "hook".to_owned());
    let args = std::iter::once(own_name).chain(word).chain([name.to_owned()]).chain(arguments).collect();
    Hook {
        hook_name: "createContainer".to_owned(),
        path: program.to_owned(),
        args,
        env: vec!["NVIDIA_CTK_DEBUG=false".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;

    fn files() -> DriverFiles {
        let file = |path: &str| File { host: format!("/run/driver{path}").into(), container: path.into() };
        DriverFiles {
            libraries: vec![file("/usr/lib64/libcuda.so.580.1")],
            links: vec![Link {
                target: "libcuda.so.580.1".to_owned(),
                path: "/usr/lib64/libcuda.so.1".into(),
                host: "/run/driver/usr/lib64/libcuda.so.580.1".into(),
            }],
            tools: vec![file("/usr/bin/nvidia-smi")],
            sockets: vec![file("/run/nvidia-persistenced/socket")],
            hook: Some("/usr/bin/nvidia-ctk".into()),
            ..DriverFiles::default()
        }
    }

    fn names(edits: &ContainerEdits) -> Vec<&str> {
        let hooks = [CREATE_SYMLINKS, ENABLE_CUDA_COMPAT, UPDATE_LDCACHE, DISABLE_DEVICE_NODE_MODIFICATION];
        let words = edits.hooks.iter().flat_map(|hook| &hook.args).map(String::as_str);
        words.filter(|word| hooks.contains(word)).collect()
    }

    fn mounted(edits: &ContainerEdits) -> Vec<(&str, &str)> {
        let pairs = edits.mounts.iter().map(|m| (m.host_path.to_str(), m.container_path.to_str()));
        pairs.map(|(host, container)| (host.unwrap(), container.unwrap())).collect()
    }

    #[test]
    fn hooks_are_called_as_the_toolkits_programs_take_them() {
        let edits = edits(&files(), "580.1", &options());
        let args: Vec<String> = edits.hooks.iter().map(|hook| hook.args.join(" ")).collect();
        let expected = [
            "nvidia-ctk hook create-symlinks --link libcuda.so.580.1::/usr/lib64/libcuda.so.1",
            "nvidia-ctk hook enable-cuda-compat --host-driver-version=580.1",
            "nvidia-ctk hook update-ldcache --folder /usr/lib64",
            "nvidia-ctk hook disable-device-node-modification",
        ];
        assert_eq!(args, expected);
        assert!(edits.hooks.iter().all(|hook| hook.hook_name == "createContainer" && hook.env.len() == 1));
        let small = DriverFiles { hook: Some("/opt/nvidia-cdi-hook".into()), ..files() };
        let small = super::edits(&small, "580.1", &options());
        assert_eq!(small.hooks[2].args.join(" "), "nvidia-cdi-hook update-ldcache --folder /usr/lib64");
        assert_eq!(small.hooks[2].path, Path::new("/opt/nvidia-cdi-hook"));
    }

    #[test]
    fn without_hooks_the_file_stands_at_its_links_name_too() {
        let with_hook = edits(&files(), "580.1", &options());
        assert_eq!(
            mounted(&with_hook),
            [
                ("/run/driver/run/nvidia-persistenced/socket", "/run/nvidia-persistenced/socket"),
                ("/run/driver/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"),
                ("/run/driver/usr/lib64/libcuda.so.580.1", "/usr/lib64/libcuda.so.580.1"),
            ]
        );
        let no_hook = edits(&DriverFiles { hook: None, ..files() }, "580.1", &options());
        assert_eq!(no_hook.hooks, []);
        assert_eq!(mounted(&no_hook).len(), 4);
        let link = ("/run/driver/usr/lib64/libcuda.so.580.1", "/usr/lib64/libcuda.so.1");
        assert_eq!(mounted(&no_hook)[2], link);
        let disabled = CdiOptions { disabled_hooks: [CREATE_SYMLINKS.to_owned()].into(), ..options() };
        let disabled = edits(&files(), "580.1", &disabled);
        assert_eq!(names(&disabled), [ENABLE_CUDA_COMPAT, UPDATE_LDCACHE, DISABLE_DEVICE_NODE_MODIFICATION]);
        assert_eq!(mounted(&disabled)[2], link);
    }

    #[test]
    fn all_hooks_can_be_left_out() {
        let none = CdiOptions { disabled_hooks: ["all".to_owned()].into(), ..options() };
        assert_eq!(names(&edits(&files(), "580.1", &none)), [""; 0]);
    }

    #[test]
    fn sockets_and_files_are_mounted_as_nvidias_toolkit_does() {
        let edits = edits(&files(), "580.1", &options());
        let read_only = |mount: &Mount| mount.options.iter().any(|option| option == "ro");
        assert_eq!(edits.mounts.iter().map(read_only).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(edits.env, ["NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64", "NVIDIA_VISIBLE_DEVICES=void"]);
    }

    #[test]
    fn without_driver_files_only_the_variable_is_left() {
        let edits = edits(&DriverFiles::default(), "580.1", &options());
        assert_eq!(edits.env, ["NVIDIA_VISIBLE_DEVICES=void"]);
        assert_eq!((edits.mounts, edits.hooks), (vec![], vec![]));
    }
}

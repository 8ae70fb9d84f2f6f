use std::path::Path;

use super::*;

fn given(values: &[(&str, &str)]) -> Values {
    values.iter().fold(Values::default(), |all, (flag, text)| all.with(flag, text))
}

fn config(values: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::new(&given(values), 1000)
}

fn mistakes(values: &[(&str, &str)]) -> Vec<String> {
    config(values).unwrap_err().mistakes
}

#[test]
fn the_defaults_are_those_of_nvidias_plugin() {
    let config = config(&[]).unwrap();
    assert_eq!(config.policy.offer.strategy, MigStrategy::None);
    assert!(config.policy.fail_on_init_error);
    assert_eq!(config.paths.driver_root, Path::new("/driver-root"));
    assert_eq!(config.rules.host_dev_root, Path::new("/"));
    assert_eq!(config.kubelet_socket, Path::new("/var/lib/kubelet/device-plugins/kubelet.sock"));
}

#[test]
fn nodes_that_exist_are_named_unless_told_otherwise() {
    let specs = |values: &[_]| config(values).unwrap().policy.offer.device_specs;
    assert_eq!(specs(&[]), DeviceSpecs::Existing);
    assert_eq!(specs(&[("pass-device-specs", "true")]), DeviceSpecs::Required);
    assert_eq!(specs(&[("pass-device-specs", "False")]), DeviceSpecs::Omitted);
}

#[test]
fn the_dev_root_on_the_host_is_the_driver_root_unless_it_is_given() {
    let root = |values: &[_]| config(values).unwrap().rules.host_dev_root;
    assert_eq!(root(&[("nvidia-driver-root", "/run/nvidia/driver")]), Path::new("/run/nvidia/driver"));
    let both = [("nvidia-driver-root", "/run/nvidia/driver"), ("nvidia-dev-root", "/")];
    assert_eq!(root(&both), Path::new("/"));
}

#[test]
fn intervals_have_a_unit_and_zero_means_never() {
    let interval = |text| config(&[("rescan-interval", text)]).unwrap().session.rescan;
    assert_eq!(interval("1m30s"), Some(Duration::from_secs(90)));
    assert_eq!(interval("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(interval("0"), None);
    assert_eq!(interval("0s"), None);
}

#[test]
fn root_our_own_user_and_those_named_may_connect() {
    let uids = config(&[("allowed-uid", "7, 8")]).unwrap().allowed_uids;
    assert_eq!(uids, HashSet::from([0, 7, 8, 1000]));
}

#[test]
fn all_mistakes_are_told_at_once_with_what_would_be_right() {
    let told = mistakes(&[
        ("mig-strategy", "mixd"),
        ("fail-on-init-error", "yes"),
        ("rescan-interval", "10"),
        ("nvidia-dev-root", "dev"),
        ("allowed-uid", "root"),
    ]);
    assert_eq!(
        told,
        [
            r#"--mig-strategy: "mixd" cannot be used: it is one of none, single, mixed (did you mean "mixed"?)"#,
            r#"--fail-on-init-error: "yes" cannot be used: it is true or false"#,
            r#"--rescan-interval: "10" cannot be used: it is a time with a unit, such as 500ms, 10s, 1m30s, or 0"#,
            r#"--nvidia-dev-root: "dev" cannot be used: it is an absolute path"#,
            r#"--allowed-uid: "root" cannot be used: it is a user's number, or several with commas between"#,
        ]
    );
}

#[test]
fn a_folder_that_leaves_no_room_for_a_sockets_name_is_refused() {
    let socket = format!("/{}/kubelet.sock", "x".repeat(90));
    let told = mistakes(&[("kubelet-socket", &socket)]);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("too long") && told[0].contains("107"), "{}", told[0]);
    assert!(mistakes(&[("kubelet-socket", "/")])[0].contains("a file's path"));
}

#[test]
fn a_log_level_is_a_word_or_levels_per_module() {
    let level = |text| {
        let values = given(&[("log-level", text)]);
        Config::new(&values, 1000).map(|_| log(&values).level)
    };
    assert!(level("debug").unwrap().to_string().contains("mig_device_plugin=debug"));
    assert!(level("info,mig_device_plugin::nvml=trace").unwrap().to_string().contains("nvml=trace"));
    let told = level("loud=very").unwrap_err().mistakes;
    assert!(told[0].starts_with("--log-level: \"loud=very\" cannot be used"), "{}", told[0]);
}

mod files {
    use proptest::prelude::*;

    use super::*;
    use crate::config::file::File;
    use crate::resource::policy::{DeviceRef, DeviceSelection, Selector};

    fn read(text: &str) -> File {
        File::parse("config.yaml", text.as_bytes(), false)
    }

    /// What a file alone makes of the configuration.
    fn configured(text: &str, flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = read(text);
        let mistakes = file.mistakes.clone();
        let values = derived(given(flags).over(&file.values), |_| false);
        Merged { values, file, mistakes }.config(1000)
    }

    const EXAMPLE: &str = include_str!("../../tests/it/config-files/good/mixed-shared.yaml");

    #[test]
    fn a_file_becomes_what_it_says() {
        let config = configured(EXAMPLE, &[]).unwrap();
        let offer = &config.policy.offer;
        assert_eq!(offer.strategy, MigStrategy::Mixed);
        assert_eq!(config.policy.removal_grace, Duration::from_secs(10));
        assert_eq!(config.session.rescan, Some(Duration::from_secs(90)));
        let told = [DeviceListStrategy::VolumeMounts, DeviceListStrategy::CdiAnnotations];
        assert_eq!(config.rules.strategies, told.into());
        assert_eq!(config.rules.ids, DeviceIdStrategy::Index);
        assert!(config.rules.variable_per_resource && config.allowed_uids.contains(&65532));
        assert_eq!(offer.withhold[1], Selector::Device(DeviceRef::Mig(0, 3)));
        assert_eq!(offer.withhold[3], Selector::Profile("1g.10gb+me".parse().unwrap()));
        let names = |patterns: &[crate::resource::policy::Pattern]| {
            patterns.iter().map(|pattern| pattern.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&offer.gpus), ["nvidia.com/h100"]);
        assert_eq!(names(&offer.mig), ["nvidia.com/small", "example.com/slice"]);
        let slicing = &offer.time_slicing;
        assert!(slicing.rename_by_default && slicing.fail_requests_greater_than_one);
        let [small, h100, slice] = &slicing.resources[..] else { panic!("{slicing:?}") };
        assert_eq!((small.name.as_str(), small.replicas, &small.rename), ("nvidia.com/small", 4, &None));
        let DeviceSelection::List(listed) = &small.devices else { panic!("{small:?}") };
        assert_eq!((&listed[0], listed.len()), (&DeviceRef::Mig(0, 1), 4));
        assert_eq!(h100.rename.as_ref().unwrap().as_str(), "nvidia.com/h100-shared");
        assert_eq!((&h100.devices, &slice.devices), (&DeviceSelection::Count(3), &DeviceSelection::All));
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let text = "version: v1\nflags: {migStrategy: mixed, plugin: {removalGrace: 1s}}\n";
        let config = configured(text, &[("mig-strategy", "single")]).unwrap();
        assert_eq!(config.policy.offer.strategy, MigStrategy::Single);
        assert_eq!(config.policy.removal_grace, Duration::from_secs(1));
        assert!(config.policy.fail_on_init_error);
    }

    #[test]
    fn the_roots_that_are_not_given_follow_the_drivers_root_on_the_host() {
        let roots = |values: &[(&str, &str)], folders: &[&str]| {
            let values =
                derived(given(values), |path| folders.iter().any(|folder| Path::new(folder) == path));
            values.text("driver-root-ctr-path").to_owned()
        };
        let host = ("nvidia-driver-root", "/run/nvidia/driver");
        assert_eq!(roots(&[host], &["/run/nvidia/driver"]), "/run/nvidia/driver");
        assert_eq!(roots(&[host], &["/run/nvidia/driver", "/driver-root"]), "/driver-root");
        assert_eq!(roots(&[host], &[]), "/driver-root");
        assert_eq!(roots(&[], &["/"]), "/driver-root");
        assert_eq!(roots(&[host, ("driver-root-ctr-path", "/x")], &["/run/nvidia/driver"]), "/x");
    }

    #[test]
    fn only_what_is_fixed_while_the_parts_run_needs_a_restart() {
        let with = |text: &str| configured(&format!("version: v1\nflags: {text}\n"), &[]).unwrap();
        let config = with("{}");
        assert!(!config.needs_restart(&with("{migStrategy: mixed, plugin: {removalGrace: 1s}}")));
        assert!(config.needs_restart(&with("{nvidiaDriverRoot: /x}")));
        assert!(config.needs_restart(&with("{plugin: {cdiSpecDir: /x}}")));
    }

    #[test]
    fn many_mistakes_are_counted_and_long_values_cut() {
        let keys: String = (0..1000).map(|n| format!("k{n}: {n}")).collect::<Vec<_>>().join("\n");
        let told = configured(&keys, &[]).unwrap_err().mistakes;
        assert_eq!(told.len(), MAX_MISTAKES + 1);
        assert_eq!(told[MAX_MISTAKES], "and 900 more mistakes");
        let long = format!("version: v1\nflags: {{migStrategy: {}}}\n", "x".repeat(900_000));
        let told = configured(&long, &[]).unwrap_err().mistakes;
        assert!(told.len() == 1 && told[0].len() < 300, "{told:?}");
    }

    #[test]
    fn an_unknown_key_is_a_warning_for_those_who_want_that() {
        let file = File::parse("f", b"version: v1\ncolour: green\nflags: {migStrategy: all}\n", true);
        assert_eq!(file.warnings.len(), 1);
        assert_eq!(file.mistakes.len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_reason_to_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            File::parse("f", &bytes, false);
        }

        #[test]
        fn no_text_of_yamls_own_characters_is_a_reason_to_panic(text in "[-a-c:,&*!|>?{}\\[\\] \t\n'\"#%@0-9]{0,120}") {
            File::parse("f", text.as_bytes(), false);
        }

        #[test]
        fn no_slip_in_a_good_file_is_a_reason_to_panic(at in 0..EXAMPLE.len(), length in 0_usize..40, new in "[-a-z:,&*!{}\\[\\] \n\"0-9]{0,5}") {
            let mut bytes = EXAMPLE.as_bytes().to_vec();
            bytes.splice(at..(at + length).min(EXAMPLE.len()), new.bytes());
            for mistake in File::parse("f", &bytes, false).mistakes {
                prop_assert!(mistake.starts_with("f:"), "{mistake}");
            }
        }
    }
}

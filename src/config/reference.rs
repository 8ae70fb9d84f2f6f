//! The reference page, made from the table: `docs/configuration.md` is this, and a test compares them.

use std::fmt::Write;

use super::settings::{GROUPS, Setting};

const TOP: &str = "\
# Configuration

This page is printed by `mig-device-plugin config reference`; a test compares them.

A value comes from its flag, or else from its environment variable, or else from the config file, or else it is the default.
A file is checked as a whole, also where a flag or a variable wins.
An environment variable that is empty counts as one that is not set.
`mig-device-plugin config show` prints the merged configuration and where each value comes from, and `mig-device-plugin config check FILE` checks a file.

The flags, variables and keys of NVIDIA's plugin are all here, with the same meaning.
Lists have commas between their items in flags and variables, and a flag of a list may be given several times; in the file a list is a YAML list or such a text.
Truth values are what YAML and Go's `strconv.ParseBool` take.

## The file

`--config-file` names a file in YAML or JSON, of at most 1 MiB:

```yaml
version: v1
flags:
  migStrategy: mixed
  plugin:
    deviceListStrategy: [envvar]
    removalGrace: 10s
resources:
  mig:
    - pattern: 1g.*
      name: small
sharing:
  timeSlicing:
    renameByDefault: true
    resources:
      - name: nvidia.com/gpu
        replicas: 4
```

All mistakes are told at once, each with file, line, column, key, value and what is allowed.
A key that is not known is a mistake; with `--lenient-config` it is a warning.
A key that differs from a known one only in upper and lower case is taken for it, with a warning, and so is a file without `version`, since NVIDIA's plugin takes both.
A key without a value is a key that is not there.
Anchors and aliases work; tags, several documents in one file and merge keys (`<<`) do not.

The file is followed while the program runs, and SIGHUP reads it anew.
A valid change takes effect at once, without a restart, and only where it changes something; a broken one is logged, and the last good configuration stays.
A change of the driver's roots, of the rescan interval, of the users that may connect or of what CDI specifications say makes all parts start over within the same process.
Where the driver hangs at that moment, the devices are listed again as unhealthy until it answers.
";

/// The page.
pub(super) fn page() -> String {
    let mut page = TOP.to_owned();
    for group in GROUPS {
        write!(page, "\n## {}\n\n", group.heading).ok();
        if !group.about.is_empty() {
            write!(page, "{}\n\n", group.about).ok();
        }
        page += "| file | flag | environment | allowed | default | meaning |\n|---|---|---|---|---|---|\n";
        group.settings.iter().for_each(|setting| row(&mut page, setting));
    }
    page
}

fn row(page: &mut String, setting: &Setting) {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let flags = [setting.flag].into_iter().chain(setting.aliases.iter().copied());
    let flags: Vec<_> = flags.filter(|flag| !flag.is_empty()).map(|flag| format!("`--{flag}`")).collect();
    let variables: Vec<_> = setting.variables.iter().map(|name| format!("`{name}`")).collect();
    let cells = [
        code(setting.key),
        flags.join(", "),
        variables.join(", "),
        prose(&setting.kind.rule()),
        code(setting.default),
        prose(setting.help),
    ];
    writeln!(page, "| {} |", cells.join(" | ")).ok();
}

/// What Markdown would read as something else.
fn prose(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

    #[test]
    fn the_page_in_docs_is_the_page_of_the_table() {
        let written = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(written == page(), "run: cargo test --lib rewrite_the_reference_page -- --ignored");
    }

    #[test]
    #[ignore = "it writes docs/configuration.md"]
    fn rewrite_the_reference_page() {
        std::fs::write(FILE, page()).unwrap();
    }

    #[test]
    fn the_page_names_every_flag_that_clap_knows_and_every_key() {
        let page = page();
        let command = crate::config::add_to(clap::Command::new("x"));
        for argument in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&format!("`--{argument}`")), "{argument}");
        }
        for setting in settings::all().filter(|setting| !setting.key.is_empty()) {
            assert!(page.contains(&format!("`{}`", setting.key)), "{}", setting.key);
        }
    }

    #[test]
    fn the_example_is_a_valid_file() {
        let example = TOP.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let file = crate::config::file::File::parse("example", example.as_bytes(), false);
        assert_eq!((file.mistakes, file.warnings), (Vec::new(), Vec::new()));
    }
}

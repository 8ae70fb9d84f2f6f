//! What the command `devices` prints, and `/devices` with it: the node for people and for programs. Pure.

use self::state::NodeState;

mod drawing;
pub mod state;
mod table;

#[cfg(test)]
mod tests;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A table for people, at most 100 columns wide where names allow.
    #[default]
    Table,
    /// The same with NUMA nodes and device nodes.
    Wide,
    /// Everything, for programs.
    Json,
    /// Everything, for programs and people.
    Yaml,
}

/// The inventory could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// As JSON.
    #[error("the devices cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("the devices cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// The text for `node`, ending in a line break.
pub fn render(node: &NodeState, format: Format) -> Result<String, RenderError> {
    match format {
        Format::Table => Ok(table::render(node, table::Columns::Narrow)),
        Format::Wide => Ok(table::render(node, table::Columns::Wide)),
        Format::Json => Ok(serde_json::to_string_pretty(node)? + "\n"),
        Format::Yaml => Ok(serde_saphyr::to_string(node)?),
    }
}

//! One look for every table a command prints.

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};

/// A table with this header, as wide as the terminal.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let line = LineStyle::none().fill('─').junction('─');
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(line).bottom_border(line));
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

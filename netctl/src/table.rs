//! Tables as virsh draws them: a space before every cell, two after all but the last, a rule of
//! dashes under the header.

use crate::output::clean;

/// A table with a header, for columns of text.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell, false)).collect());
    }

    /// Without header and rule in quiet mode.
    pub(crate) fn render(&self, quiet: bool) -> String {
        let shown = self.rows.iter().chain((!quiet).then_some(&self.header));
        let mut widths = vec![0; self.header.len()];
        for row in shown {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        if !quiet {
            line(&mut out, &self.header, &widths);
            let rule: usize = widths.iter().map(|width| width + 3).sum();
            out.extend(std::iter::repeat_n('-', rule));
            out.push('\n');
        }
        for row in &self.rows {
            line(&mut out, row, &widths);
        }
        out
    }
}

fn line(out: &mut String, cells: &[String], widths: &[usize]) {
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        out.push(' ');
        out.push_str(cell);
        if index + 1 < cells.len() {
            let padding = width + 2 - cell.chars().count();
            out.extend(std::iter::repeat_n(' ', padding));
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks() -> Table {
        let mut table = Table::new(&["Name", "State", "Autostart", "Persistent"]);
        let cells = ["default", "active", "no", "yes"];
        table.row(cells.map(str::to_owned));
        table
    }

    #[test]
    fn looks_like_virshs() {
        assert_eq!(
            networks().render(false),
            " Name      State    Autostart   Persistent\n\
             --------------------------------------------\n \
             default   active   no          yes\n"
        );
    }

    #[test]
    fn quiet_tables_have_rows_only() {
        assert_eq!(networks().render(true), " default   active   no   yes\n");
        assert_eq!(Table::new(&["Name"]).render(true), "");
    }

    #[test]
    fn cells_cannot_break_rows() {
        let mut table = Table::new(&["A"]);
        table.row(["x\ny".to_owned()]);
        assert_eq!(table.render(false), " A\n---------\n x\\x0ay\n");
    }
}

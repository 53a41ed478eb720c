//! Plain tables: columns as wide as they must be, two spaces between them.

/// A table that is filled row by row.
#[derive(Clone, Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub(super) fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row; it has as many cells as there are heads.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert!(self.rows.first().is_some_and(|h| h.len() == cells.len()), "a row does not fit");
        self.rows.push(cells);
    }

    /// Whether there are only heads.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, each line indented by `indent`.
    pub(super) fn render(&self, indent: &str) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        assert!(table.is_empty());
        table.row(vec!["a-long-name".to_owned(), "1 GiB".to_owned()]);
        table.row(vec!["ü".to_owned(), String::new()]);
        let text = table.render(" ");
        assert_eq!(text, " NAME         SIZE\n a-long-name  1 GiB\n ü\n");
    }
}

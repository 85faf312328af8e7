//! Tables for people: columns as wide as what stands in them, the last one as it is.

use std::fmt::{self, Write as _};

/// A table of `N` columns.
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// With these names above its columns.
    pub fn new(names: [&str; N]) -> Self {
        Self { rows: vec![names.map(str::to_owned)] }
    }

    /// Adds a row.
    pub fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                write!(line, "{cell:<width$}  ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(["A", "LONGER", "C"]);
        table.row(["été".to_owned(), "x".to_owned(), "last".to_owned()]);
        assert_eq!(table.to_string(), "A    LONGER  C\nété  x       last\n");
    }
}

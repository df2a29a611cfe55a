//! A mutable matrix view that threads split among themselves by rows and by columns.
//!
//! Slices split by rows only; a linear layer is split by output columns.
//! **Invariant:** tiles made from one view never overlap, and none outlives the view.
#![expect(
    unsafe_code,
    reason = "fence: column tiles interleave in memory, so slices cannot say it"
)]

use std::marker::PhantomData;

/// Rows of `width` elements, `stride` apart.
pub struct Tile<'a> {
    /// First element of the first row.
    start: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is an exclusive borrow of its elements, as `&mut [f32]` is.
unsafe impl Send for Tile<'_> {}

impl<'a> Tile<'a> {
    /// All of `data`, in rows of `width`.
    ///
    /// # Panics
    /// If `data` is no whole number of rows.
    pub fn new(data: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && data.len().is_multiple_of(width), "{} by {width}", data.len());
        let rows = data.len() / width;
        Self { start: data.as_mut_ptr(), rows, width, stride: width, borrow: PhantomData }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies in the borrow, this tile alone covers these columns of it, and the
        // result borrows the tile mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }

    /// Takes the first `rows` rows off; the rest stays. Takes all if there are fewer.
    pub fn take_rows(&mut self, rows: usize) -> Tile<'a> {
        let rows = rows.min(self.rows);
        let taken = Tile { rows, ..*self };
        self.rows -= rows;
        // An offset past the last row could leave the allocation, which `wrapping_add` permits;
        // such a view has no rows and so is never read.
        self.start = self.start.wrapping_add(rows * self.stride);
        taken
    }

    /// Takes the first `width` columns off; the rest stays. Takes all if there are fewer.
    pub fn take_columns(&mut self, width: usize) -> Tile<'a> {
        let width = width.min(self.width);
        let taken = Tile { width, ..*self };
        self.width -= width;
        self.start = self.start.wrapping_add(width);
        taken
    }

    /// Column tiles of `width`, the last one narrower.
    pub fn columns(mut self, width: usize) -> impl Iterator<Item = Tile<'a>> + Send {
        std::iter::from_fn(move || (self.width > 0).then(|| self.take_columns(width)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_element_once() {
        for (rows, width, by_rows, by_columns) in [(1, 1, 1, 1), (5, 7, 2, 3), (4, 16, 9, 16)] {
            let mut data = vec![0.0; rows * width];
            let mut whole = Tile::new(&mut data, width);
            while whole.rows() > 0 {
                for mut tile in whole.take_rows(by_rows).columns(by_columns) {
                    for row in 0..tile.rows() {
                        tile.row(row).iter_mut().for_each(|x| *x += 1.0);
                    }
                }
            }
            assert!(data.iter().all(|&x| x == 1.0), "{rows}x{width}");
        }
    }
}

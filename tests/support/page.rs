//! The fenced blocks of a page of the documentation.

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
}

/// The fenced blocks of a page, in order.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut fences = page.split("\n```");
    fences.next();
    let mut blocks = Vec::new();
    // Every second fence closes a block.
    while let Some(block) = fences.next() {
        let (language, text) = block.split_once('\n').unwrap();
        blocks.push(Block { language: language.into(), text: text.into() });
        fences.next();
    }
    blocks
}

//! The links between the pages, and those of the README, lead to files and headings that are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::file;

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut links = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in self::links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        {
            links += 1;
            if let Some(why) = wrong(&page, &link) {
                broken.push(format!("{}: ({link}): {why}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(links > 50, "{links} links were found: is this test blind?");
}

#[test]
fn every_page_is_in_the_book() {
    let summary = std::fs::read_to_string(file("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> = links(&summary).into_iter().collect();
    let names = pages().into_iter().filter(|page| page.starts_with(file("docs")));
    let names = names.map(|page| page.file_name().unwrap().to_str().unwrap().to_owned());
    let names: BTreeSet<_> = names.filter(|name| name != "SUMMARY.md").collect();
    assert_eq!(listed, names, "docs/SUMMARY.md and the pages in docs/");
}

/// All that a reader of the repository sees.
fn pages() -> Vec<PathBuf> {
    let pages = ["", "docs"].into_iter().flat_map(|folder| std::fs::read_dir(file(folder)).unwrap());
    let mut pages: Vec<_> = pages.map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages
}

/// The targets of the links in a page; what stands in code, or whose brackets are escaped, is no link.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        let line: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        for (at, _) in line.match_indices("](").filter(|(at, _)| !line[..*at].ends_with('\\')) {
            let rest = &line[at + 2..];
            links.extend(rest.find(')').map(|end| rest[..end].to_owned()));
        }
    }
    links
}

/// The lines that are not between fences.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// What is not in the book is linked to where the book's readers find it.
const REPOSITORY: &str = "https://github.com/lictor-dev/lictor";

/// Why a link leads nowhere. Of links to other sites only their form is looked at.
fn wrong(page: &Path, link: &str) -> Option<String> {
    let in_repository =
        link.strip_prefix(REPOSITORY).and_then(|path| path.trim_start_matches('/').split_once("/main/"));
    if let Some((_, path)) = in_repository {
        return (!file(path).exists()).then(|| "no such file in the repository".to_owned());
    }
    if link.contains("://") {
        return (!link.starts_with("https://")).then(|| "not https".to_owned());
    }
    if page.starts_with(file("docs")) && link.starts_with("../") {
        return Some(format!("it leads out of the book: link to {REPOSITORY}/tree/main/…"));
    }
    let (target, anchor) = link.split_once('#').map_or((link, None), |(target, anchor)| (target, Some(anchor)));
    let target = if target.is_empty() { page.to_owned() } else { page.parent()?.join(target) };
    if !target.exists() {
        return Some("no such file".to_owned());
    }
    let anchor = anchor?;
    let Ok(text) = std::fs::read_to_string(&target) else { return Some("an anchor in what is no page".to_owned()) };
    let anchors = prose(&text).filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#')));
    (!anchors.into_iter().any(|slug| slug == anchor)).then(|| "no such heading".to_owned())
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

//! The one page, written as plain HTML that works without scripts. Everything that a person wrote goes through
//! `Escaped`.

use std::fmt::{self, Display, Write};

use crate::listing::{Draft, Kind, LOCATION_CHARS_MAX, Listing, Mistakes, TEXT_CHARS_MAX, TITLE_CHARS_MAX};
use crate::matching::{Match, Matches, RankedBy};

/// Served as `/style.css`.
pub const STYLE: &str = include_str!("page.css");

/// What the page shows.
pub struct Page {
    /// Only these, if given.
    pub kind: Option<Kind>,
    /// Newest first.
    pub listings: Vec<Listing>,
    /// There are older ones.
    pub next_before: Option<i64>,
    /// Of the listing that was asked for.
    pub matches: Option<Matches>,
    /// Its number, also when there is no such listing.
    pub match_asked: Option<i64>,
    /// What stands in the form.
    pub draft: Draft,
    /// What is wrong with it.
    pub mistakes: Mistakes,
    /// Ollama is away.
    pub degraded: bool,
}

/// Text as it may stand in HTML, also inside a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

fn frame(title: &str, body: &str) -> String {
    format!(
        r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{}</title>
<link rel="stylesheet" href="/style.css">
<link rel="icon" href="data:,">
</head>
<body>
<a class="skip" href="#listings">Skip to the listings</a>
<header>
<p class="brand"><a href="/">Barter</a></p>
<p class="claim">Swap what you have for what you need.</p>
<a class="jump" href="/#post">Post a listing</a>
</header>
{body}
</body>
</html>
"##,
        Escaped(title)
    )
}

/// Shown when there is nothing to show.
pub fn unavailable(message: &str) -> String {
    let body = format!(
        r#"<main class="single"><h1>Back in a moment</h1><p role="alert">Sorry, {}. Please try again in a few seconds.</p></main>"#,
        Escaped(message)
    );
    frame("Barter: back in a moment", &body)
}

impl Page {
    /// The whole document.
    pub fn to_html(&self) -> String {
        let mut body = String::new();
        if self.degraded {
            body.push_str(
                r#"<p class="notice" role="status"><strong>Matching by words only.</strong> The service that understands meaning is away; matches get better again when it is back.</p>"#,
            );
        }
        body.push_str("<main>\n<div class=\"column\">\n");
        body.push_str(&self.matches_html());
        body.push_str(&self.listings_html());
        body.push_str("</div>\n");
        body.push_str(&self.form_html());
        body.push_str("</main>\n");
        let title = match (&self.matches, self.mistakes.is_empty()) {
            (_, false) => "Barter: please check your listing".to_string(),
            (Some(matches), _) => format!("Barter: matches for {}", matches.listing.title),
            (None, _) => "Barter: offers and wants".to_string(),
        };
        frame(&title, &body)
    }

    fn matches_html(&self) -> String {
        let Some(matches) = &self.matches else {
            return match self.match_asked {
                Some(_) => r#"<p class="notice" role="alert">That listing doesn't exist (any more).</p>"#.into(),
                None => String::new(),
            };
        };
        let mut html = format!(
            r#"<section class="matches" id="matches" aria-labelledby="matches-title">
<h2 id="matches-title">Matches for “{}”</h2>
<p class="quiet">{} · {} · <a href="/">close</a></p>
"#,
            Escaped(&matches.listing.title),
            kind_label(matches.listing.kind),
            Escaped(&matches.listing.location),
        );
        if let Some(reason) = matches.reason.as_ref().filter(|_| !self.degraded) {
            let _ = writeln!(html, r#"<p class="notice" role="status">Not at its best: {}.</p>"#, Escaped(reason));
        }
        let worth_showing: Vec<&Match> = matches.matches.iter().filter(|found| is_worth_showing(found)).collect();
        if worth_showing.is_empty() {
            let missing = match matches.listing.kind {
                Kind::Offer => "Nobody is looking for this yet.",
                Kind::Want => "Nobody offers this yet.",
            };
            let _ = writeln!(html, r#"<p class="empty">{missing} Your listing stays here until somebody does.</p>"#);
        } else {
            html.push_str("<ol class=\"cards\">\n");
            worth_showing.into_iter().for_each(|found| html.push_str(&match_html(found)));
            html.push_str("</ol>\n");
        }
        html.push_str("</section>\n");
        html
    }

    fn listings_html(&self) -> String {
        let mut html = String::from(
            "<section id=\"listings\" aria-labelledby=\"listings-title\">\n<div class=\"bar\"><h1 id=\"listings-title\">Latest listings</h1>\n<nav aria-label=\"Kind of listing\">",
        );
        let choices = [
            (None, "/", "All"),
            (Some(Kind::Offer), "/?kind=offer", "Offers"),
            (Some(Kind::Want), "/?kind=want", "Wants"),
        ];
        for (kind, address, label) in choices {
            let current = if kind == self.kind { r#" aria-current="page""# } else { "" };
            let _ = write!(html, r#"<a href="{address}"{current}>{label}</a>"#);
        }
        html.push_str("</nav></div>\n");
        if self.listings.is_empty() {
            html.push_str(
                "<p class=\"empty\">Nothing here yet. Be the first: post what you have or what you need.</p>\n",
            );
        } else {
            html.push_str("<ul class=\"cards\">\n");
            self.listings.iter().for_each(|listing| html.push_str(&listing_html(listing)));
            html.push_str("</ul>\n");
        }
        if let Some(before) = self.next_before {
            let kind = self.kind.map(|kind| format!("&amp;kind={}", kind.as_str())).unwrap_or_default();
            let _ = writeln!(html, r#"<p class="more"><a href="/?before={before}{kind}">Older listings</a></p>"#);
        }
        html.push_str("</section>\n");
        html
    }

    fn form_html(&self) -> String {
        let checked = |kind: Kind| if self.draft.kind == kind.as_str() { " checked" } else { "" };
        let mut html = String::from(
            "<section class=\"post\" id=\"post\" aria-labelledby=\"post-title\">\n<h2 id=\"post-title\">Post a listing</h2>\n<form method=\"post\" action=\"/#post\">\n",
        );
        if !self.mistakes.is_empty() {
            html.push_str(
                "<p class=\"notice\" role=\"alert\">Please check the marked fields; nothing was posted yet.</p>\n",
            );
        }
        let _ = writeln!(
            html,
            r#"<fieldset><legend>What is it?</legend>
<label class="choice"><input type="radio" name="kind" value="offer" required{}> I offer</label>
<label class="choice"><input type="radio" name="kind" value="want" required{}> I want</label>
{}</fieldset>"#,
            checked(Kind::Offer),
            checked(Kind::Want),
            self.mistake_html("kind"),
        );
        html.push_str(&self.input_html(
            "title",
            "Title",
            "Children’s bike, 20 inch",
            TITLE_CHARS_MAX,
            &self.draft.title,
        ));
        let _ = writeln!(
            html,
            r#"<label for="text">Details <span class="quiet">(optional)</span></label>
<textarea id="text" name="text" rows="4" maxlength="{TEXT_CHARS_MAX}"{}>{}{}</textarea>
{}"#,
            self.mistake_attributes("text"),
            // HTML drops a first line break, so one is given to be dropped.
            '\n',
            Escaped(&self.draft.text),
            self.mistake_html("text"),
        );
        html.push_str(&self.input_html(
            "location",
            "Where",
            "Town or part of town",
            LOCATION_CHARS_MAX,
            &self.draft.location,
        ));
        html.push_str("<button type=\"submit\">Post and see matches</button>\n</form>\n</section>\n");
        html
    }

    fn input_html(&self, name: &'static str, label: &str, example: &str, chars_max: usize, value: &str) -> String {
        format!(
            r#"<label for="{name}">{label}</label>
<input id="{name}" name="{name}" placeholder="{example}" maxlength="{chars_max}" required value="{}"{}>
{}"#,
            Escaped(value),
            self.mistake_attributes(name),
            self.mistake_html(name),
        )
    }

    fn mistake_attributes(&self, field: &str) -> String {
        if self.mistakes.contains_key(field) {
            format!(r#" aria-invalid="true" aria-describedby="{field}-mistake""#)
        } else {
            String::new()
        }
    }

    fn mistake_html(&self, field: &str) -> String {
        match self.mistakes.get(field) {
            Some(mistake) => format!("<p class=\"mistake\" id=\"{field}-mistake\">This {}.</p>\n", Escaped(mistake)),
            None => String::new(),
        }
    }
}

/// The interface ranks everything; people needn't scroll through what has nothing in common with their listing.
fn is_worth_showing(found: &Match) -> bool {
    found.ranked_by == RankedBy::Text || found.likeness >= 0.1
}

fn kind_label(kind: Kind) -> &'static str {
    match kind {
        Kind::Offer => "Offer",
        Kind::Want => "Want",
    }
}

fn card_html(listing: &Listing, extra: &str) -> String {
    let text = match listing.text.as_str() {
        "" => String::new(),
        text => format!("<p class=\"text\">{}</p>\n", Escaped(text)),
    };
    format!(
        r#"<li class="card {kind}">
<h3>{title}</h3>
<p class="quiet"><span class="kind">{label}</span> {location} · <time datetime="{created}">{day}</time></p>
{text}{extra}</li>
"#,
        kind = listing.kind.as_str(),
        title = Escaped(&listing.title),
        label = kind_label(listing.kind),
        location = Escaped(&listing.location),
        created = Escaped(&listing.created_at),
        day = Escaped(listing.created_at.split('T').next().unwrap_or_default()),
    )
}

fn listing_html(listing: &Listing) -> String {
    let link = format!(
        "<p class=\"action\"><a href=\"/?match={}#matches\">Matches<span class=\"unseen\"> for {}</span></a></p>\n",
        listing.id,
        Escaped(&listing.title)
    );
    card_html(listing, &link)
}

fn match_html(found: &Match) -> String {
    let percent = (found.score * 100.0).round();
    let how = match found.ranked_by {
        RankedBy::Similarity => "alike",
        RankedBy::Text => "by words only",
    };
    let place = if found.same_location { " · same place" } else { "" };
    let score = format!(
        "<p class=\"score\"><meter min=\"0\" max=\"100\" value=\"{percent}\" aria-label=\"How well it matches\"></meter> {percent} % {how}{place}</p>\n"
    );
    card_html(&found.listing, &score)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile() -> Listing {
        Listing {
            id: 7,
            kind: Kind::Offer,
            title: "<script>alert(1)</script>".into(),
            text: "\" onload='x' & more".into(),
            location: "</p><b>".into(),
            created_at: "2026-01-31T12:00:00Z".into(),
            embedded: true,
        }
    }

    fn page() -> Page {
        Page {
            kind: None,
            listings: vec![hostile()],
            next_before: Some(7),
            matches: None,
            match_asked: None,
            draft: Draft::default(),
            mistakes: Mistakes::new(),
            degraded: false,
        }
    }

    #[test]
    fn what_people_write_stays_text() {
        let listing = hostile();
        let matches = Matches {
            listing: hostile(),
            ranked_by: RankedBy::Text,
            degraded: true,
            reason: Some("<i>".into()),
            matches: vec![Match {
                listing: hostile(),
                score: 0.5,
                likeness: 0.5,
                same_location: true,
                ranked_by: RankedBy::Text,
            }],
        };
        let draft = Draft { title: listing.title.clone(), text: "</textarea><b>".into(), ..Draft::default() };
        let html = Page { matches: Some(matches), draft, ..page() }.to_html();
        for raw in ["<script", "</textarea><b>", "<b>", "<i>", "onload='", "\" onload"] {
            assert!(!html.contains(raw), "{raw}");
        }
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    }

    #[test]
    fn mistakes_are_tied_to_their_fields_and_the_draft_is_kept() {
        let draft = Draft { kind: "want".into(), title: "Bike".into(), ..Draft::default() };
        let mistakes = draft.validate().unwrap_err();
        let html = Page { draft, mistakes, ..page() }.to_html();
        assert!(html.contains(r#"aria-describedby="location-mistake""#));
        assert!(html.contains(r#"<p class="mistake" id="location-mistake">This must not be empty.</p>"#));
        assert!(html.contains(r#"value="Bike""#) && html.contains(r#"value="want" required checked"#));
    }

    #[test]
    fn a_degraded_page_says_so() {
        assert!(!page().to_html().contains("Matching by words only"));
        assert!(Page { degraded: true, ..page() }.to_html().contains("Matching by words only"));
    }
}

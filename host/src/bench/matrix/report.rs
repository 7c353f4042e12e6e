//! The report as one file that needs no network.

const PAGE: &str = include_str!("report.html");
/// Where the figures go.
const PLACE: &str = "{\"figures\":\"here\"}";

/// A page that shows what `bench matrix --json` prints: tables, and plots that its own script draws.
pub fn html(json: &str) -> String {
    // So that no text in it ends the element that it stands in.
    PAGE.replacen(PLACE, &json.trim_end().replace('<', "\\u003c"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_stand_in_the_page_and_cannot_leave_their_place() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        let page = html("{\"set\":\"</script><script>alert(1)</script>\"}\n");
        assert!(page.contains(r#"{"set":"\u003c/script>\u003cscript>alert(1)\u003c/script>"}</script>"#));
        assert!(!page.contains("<script>alert"));
    }

    #[test]
    fn nothing_is_fetched() {
        let linked: Vec<_> = ["http://", "https://", "//cdn", "@import", "url("]
            .into_iter()
            .filter(|link| PAGE.replace("http://www.w3.org/2000/svg", "").contains(link))
            .collect();
        assert_eq!(linked, [""; 0]);
    }
}

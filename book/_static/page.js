// What an axe-core audit asks for and the theme leaves out.
document.addEventListener("DOMContentLoaded", async () => {
  // A button's visible text is its name.
  for (const text of document.querySelectorAll(".search-button__default-text")) {
    text.closest("button").removeAttribute("aria-label");
  }
  for (const summary of document.querySelectorAll("details > summary[aria-label]")) summary.removeAttribute("aria-label");
  for (const summary of document.querySelectorAll(".bd-sidebar summary")) {
    if (!summary.textContent.trim()) summary.setAttribute("aria-label", `Pages under ${summary.closest("li").querySelector("a").textContent.trim()}`);
  }
  for (const button of document.querySelectorAll(".theme-switch-button")) {
    button.setAttribute("aria-label", "Color mode: Light, Dark or System Settings"); // the titles of its three icons
  }
  // Every part of a page lies in a landmark.
  const sidebar = document.getElementById("pst-primary-sidebar");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "Book");
  // A figure or a formula that scrolls can be reached by keyboard.
  for (const figure of document.querySelectorAll("figure:has(> img), div.cell_output:has(> img)")) {
    if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
  }
  await window.MathJax?.startup?.promise;
  for (const formula of document.querySelectorAll("mjx-container[display]")) formula.tabIndex = 0;
});

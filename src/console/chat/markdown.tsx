import DOMPurify from "dompurify";
import { Marked } from "marked";
import { useLayoutEffect, useRef } from "preact/hooks";

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // Show only the link of an image, because the image would make the browser send a request to another address.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text === "" ? href : text)}</a>`,
    // Show HTML in a reply as text.
    html: ({ text }) => escaped(text),
  },
});

const CONFIG = {
  RETURN_DOM_FRAGMENT: true as const,
  ALLOWED_TAGS:
    "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i input kbd li ol p pre s strong sub sup table tbody td th thead tr ul".split(
      " ",
    ),
  ALLOWED_ATTR: ["href", "align", "start", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};

/** Shows Markdown. A script in it becomes text, and nothing in it makes the browser load anything. */
export function Markdown({ text }: { text: string }) {
  const place = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    place.current?.replaceChildren(rendered(text));
  }, [text]);
  return <div ref={place} class="markdown" dir="auto" />;
}

function rendered(text: string): DocumentFragment {
  const fragment = DOMPurify.sanitize(marked.parse(text, { async: false }), CONFIG);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  // Each paragraph has the direction of its own text. Code always runs from left to right.
  for (const block of fragment.querySelectorAll("p, li, h1, h2, h3, h4, h5, h6, blockquote, td, th"))
    block.setAttribute("dir", "auto");
  for (const block of fragment.querySelectorAll("pre")) {
    block.setAttribute("dir", "ltr");
    block.tabIndex = 0;
  }
  for (const box of fragment.querySelectorAll("input")) {
    box.disabled = true;
    box.setAttribute("aria-label", box.checked ? "done" : "to do");
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table-frame";
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
}

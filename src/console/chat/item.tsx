import DOMPurify from "dompurify";
import { Marked } from "marked";
import { memo } from "preact/compat";
import { useLayoutEffect, useRef } from "preact/hooks";
import { exact } from "../parts/hooks.js";
import type { Item, ToolCall } from "./conversation.js";

/** One part of a conversation. Parts that did not change are not drawn again. */
export const ItemView = memo(function ItemView({ item, isShared }: { item: Item; isShared: boolean }) {
  switch (item.kind) {
    case "prompt":
      return (
        <article class="prompt" aria-label={isShared && !item.isOwn ? "Prompt" : "Your prompt"}>
          <p class="prompt-text" dir="auto" title={item.at === "" ? undefined : exact(item.at)}>
            {item.text}
          </p>
          {item.attachments.length > 0 && (
            <p class="quiet">
              With <bdi>{item.attachments.join(", ")}</bdi>
            </p>
          )}
        </article>
      );
    case "reply":
      return (
        <article class="reply" aria-label="Reply" aria-busy={item.state === "growing"}>
          <Markdown text={item.text} />
        </article>
      );
    case "tool":
      return <Tool call={item.call} />;
    case "note":
      return (
        <p class={`notice ${item.tone}`} dir="auto">
          {item.text}
        </p>
      );
  }
});

const MARKS = { running: "…", completed: "✓", failed: "✗", refused: "⊘", unfinished: "–" } as const;

function Tool({ call }: { call: ToolCall }) {
  const { name, argument, input, outcome, output } = call;
  return (
    <details class={`tool tool-${outcome}`}>
      <summary>
        <span class="tool-mark" aria-hidden="true">
          {MARKS[outcome]}
        </span>
        <span class="tool-name">{name}</span>
        <bdi class="tool-argument">{argument}</bdi>
        <span class="sr-only">{outcome}</span>
      </summary>
      <div class="tool-more">
        <p class="tool-label">Input</p>
        <pre dir="auto">{typeof input === "string" ? input : JSON.stringify(input, null, 2)}</pre>
        {output !== "" && <p class="tool-label">Result ({outcome})</p>}
        {output !== "" && <pre dir="auto">{output}</pre>}
      </div>
    </details>
  );
}

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
function Markdown({ text }: { text: string }) {
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

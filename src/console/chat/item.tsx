import { memo } from "preact/compat";
import { exact } from "../parts/show.js";
import type { Item, ToolCall } from "./conversation.js";
import { Markdown } from "./markdown.js";

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

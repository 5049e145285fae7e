import { short } from "./show.js";

/** A user, a session or a server. A long name is cut in the middle, as in the terminal; the tooltip has all of it. */
export function Name({ text, class: style }: { text: string; class?: string }) {
  return (
    <bdi class={`name ${style ?? ""}`} title={text === short(text) ? undefined : text}>
      {short(text)}
    </bdi>
  );
}

import type { ComponentChildren } from "preact";
import type { Problem } from "../api/client.js";
import { short } from "./hooks.js";

/** An error in plain words, with the next step. */
export function ProblemNotice({ problem, children }: { problem: Problem | undefined; children?: ComponentChildren }) {
  if (problem === undefined) return null;
  const { message, suggestions, requestId, status } = problem;
  return (
    <div class="notice bad" role="alert">
      <p dir="auto">{message}</p>
      {suggestions.map((each) => (
        <p key={each} class="quiet" dir="auto">
          {each}
        </p>
      ))}
      {status >= 500 && requestId !== "" && <p class="quiet">For the operator: request {requestId}.</p>}
      {children}
    </div>
  );
}

export type Tone = "good" | "warn" | "bad" | "";

/** A word with a colour, such as the state of a session. */
export function Badge({ word, tone = TONES[word] ?? "" }: { word: string; tone?: Tone }) {
  return <span class={`badge ${tone}`}>{word}</span>;
}

const TONES: Readonly<Record<string, Tone>> = {
  active: "good",
  ready: "good",
  serving: "good",
  draining: "warn",
  starting: "warn",
  unattended: "warn",
  failed: "bad",
  unhealthy: "bad",
  away: "bad",
  expired: "bad",
  suspended: "bad",
  "no sandbox": "bad",
  never: "warn",
  admin: "warn",
  gone: "bad",
  stranded: "bad",
};

/** Takes the place of an empty list. */
export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Loading() {
  return (
    <p class="loading" role="status">
      Loading…
    </p>
  );
}

/** A user, a session or a server. A long name is cut in the middle, as in the terminal; the tooltip has all of it. */
export function Name({ text, class: style }: { text: string; class?: string }) {
  return (
    <bdi class={`name ${style ?? ""}`} title={text === short(text) ? undefined : text}>
      {short(text)}
    </bdi>
  );
}

/** The most important numbers of a page. */
export function Tiles({ tiles }: { tiles: readonly (readonly [label: string, value: string | number])[] }) {
  return (
    <dl class="tiles">
      {tiles.map(([label, value]) => (
        <div key={label} class="tile">
          <dt>{label}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

import type { ComponentChildren } from "preact";
import type { Problem } from "../api/client.js";
import { ago, exact, type Polled, short, useTitle } from "./hooks.js";

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

/** A page that cannot be shown, and the way on. */
export function ProblemPage({ problem, children }: { problem: Problem; children: ComponentChildren }) {
  return (
    <div class="page">
      <ProblemNotice problem={problem}>
        <p>{children}</p>
      </ProblemNotice>
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
      {children !== undefined && <p class="quiet">{children}</p>}
    </div>
  );
}

interface PageFrameProps {
  title: string;
  /** Shown beside the title. */
  head?: ComponentChildren;
  children: ComponentChildren;
}

/** The frame of a page with a title. */
export function PageFrame({ title, head, children }: PageFrameProps) {
  useTitle(title);
  return (
    <div class="page">
      <div class="page-head">
        <h1 dir="auto">{title}</h1>
        {head}
      </div>
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

/** Shows a polled value once it is loaded, and above it why the last request failed. */
export function Loaded<T>({
  of: { value, problem },
  children,
}: {
  of: Pick<Polled<T>, "value" | "problem">;
  children(value: T): ComponentChildren;
}) {
  return (
    <>
      <ProblemNotice problem={problem} />
      {value !== undefined ? children(value) : problem === undefined && <Loading />}
    </>
  );
}

interface NameProps {
  text: string;
  class?: string;
  href?: string | undefined;
}

/** A user, a session or a server. A long name is cut in the middle, as in the terminal; the tooltip has all of it. */
export function Name({ text, class: style = "", href }: NameProps) {
  const name = (
    <bdi class={`name ${style}`} title={text === short(text) ? undefined : text}>
      {short(text)}
    </bdi>
  );
  return href === undefined ? name : <a href={href}>{name}</a>;
}

/** How long ago a time was. The tooltip has the time in full. */
export function Ago({ at, class: style, none = "–" }: { at: string | null; class?: string; none?: string }) {
  if (at === null) return <span class="quiet">{none}</span>;
  return (
    <time class={style} dateTime={at} title={exact(at)}>
      {ago(at)}
    </time>
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

interface ButtonProps {
  class?: string;
  /** What the button acts on, for screen readers. */
  about?: string;
  isDisabled?: boolean;
  act(): void;
  children: ComponentChildren;
}

export function Button({ class: style = "", about, isDisabled = false, act, children }: ButtonProps) {
  return (
    <button
      type="button"
      class={`button ${style}`}
      disabled={isDisabled}
      aria-label={about === undefined ? undefined : `${children} ${about}`}
      onClick={act}
    >
      {children}
    </button>
  );
}

interface ChoiceProps<T extends string> {
  label: string;
  class?: string;
  name?: string;
  value: T;
  /** The values, each with its title if that is another word. */
  values: readonly (T | readonly [T, string])[];
  choose: (value: NoInfer<T>) => void;
}

/** One of several values, chosen from a list. */
export function Choice<T extends string>(props: ChoiceProps<T>) {
  const { label, class: style = "inline", name, value, values, choose } = props;
  return (
    <label class={style}>
      <span>{label}</span>
      <select name={name} value={value} onChange={({ currentTarget }) => choose(currentTarget.value as T)}>
        {values.map((each) => {
          const [key, title] = typeof each === "string" ? [each, each] : each;
          return (
            <option key={key} value={key}>
              {title}
            </option>
          );
        })}
      </select>
    </label>
  );
}

/** The end of a list that shows only a part: a button that shows more, or the reason why there is none. */
export function More({ act, children }: { act?: (() => void) | undefined; children: ComponentChildren }) {
  return (
    <p class="more">
      {act === undefined ? <span class="quiet">{children}</span> : <Button act={act}>{children}</Button>}
    </p>
  );
}

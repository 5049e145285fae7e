import { useState } from "preact/hooks";
import { ask, Problem } from "../api/client.js";
import type { Caller, LimitName, UserLimits } from "../api/types.js";
import { Dialog, Field, useDialog, type Values } from "../parts/dialog.js";
import { amount, useAnswer } from "../parts/hooks.js";
import { Button, ProblemNotice, type Tone } from "../parts/notice.js";

const EVERY_MS = 5_000;
/** The fraction of a limit at which the fleet begins to warn. */
const NEAR = 0.8;

/** The limits of a user. Operators may set them. */
export function LimitsOf({ user, isAdmin }: { user: string; isAdmin: boolean }) {
  const path = isAdmin ? limitsPath(user) : "/v1/me";
  const { value, problem, reload } = useAnswer<Caller | UserLimits>(path, EVERY_MS);
  const [dialog, show] = useDialog(reload);
  const given = value !== undefined && "sources" in value ? value : null;
  const hasOwn = LIMITS.some(([name]) => given?.sources[name] === "user");
  return (
    <section class="limits" aria-label="Limits">
      <div class="section-head">
        <h2>Limits</h2>
        {given !== null && (
          <span class="actions">
            <Button class="small" act={() => show(<SetLimits limits={given} />)}>
              Set limits
            </Button>
            <Button class="small" isDisabled={!hasOwn} act={() => show(<ClearLimits limits={given} />)}>
              Clear limits
            </Button>
          </span>
        )}
      </div>
      <ProblemNotice problem={problem} />
      {value !== undefined && (
        <ul class="bars">
          {LIMITS.map(([name, title]) => (
            <Bar
              key={name}
              {...{ name, title }}
              most={value.limits[name]}
              has={value.used[name]}
              source={given?.sources[name]}
            />
          ))}
        </ul>
      )}
      {dialog}
    </section>
  );
}

interface BarProps {
  name: LimitName;
  title: string;
  most: number | null;
  has: number | null;
  /** Only operators see this. */
  source: string | undefined;
}

/** How much of a limit is used, as a bar and in words. */
function Bar({ name, title, most, has, source }: BarProps) {
  const { words, tone } = stateOf(most, has);
  return (
    <li class="bar">
      <span class="bar-head">
        <span id={`limit-${name}`}>{title}</span>
        <span class={`bar-words ${tone}`}>{words}</span>
      </span>
      {most !== null && has !== null && (
        <meter
          class={tone}
          aria-labelledby={`limit-${name}`}
          aria-valuetext={words}
          min={0}
          max={most}
          value={Math.min(has, most)}
        />
      )}
      {source !== undefined && <span class="quiet">{sourceOf(source)}</span>}
    </li>
  );
}

function stateOf(most: number | null, has: number | null): { words: string; tone: Tone } {
  const used = has === null ? "not counted" : `${amount(has)} used`;
  if (most === null) return { words: `${used}, no limit`, tone: "" };
  if (has === null) return { words: `${used}, limit ${amount(most)}`, tone: "" };
  const words = `${amount(has)} of ${amount(most)} used`;
  if (has >= most) return { words: `${words}, limit reached`, tone: "bad" };
  return has >= most * NEAR ? { words: `${words}, near the limit`, tone: "warn" } : { words, tone: "" };
}

/** Where a limit is set. */
function sourceOf(source: string): string {
  if (source === "user") return "set for this user";
  return source.startsWith("group:") ? `from group ${source.slice("group:".length)}` : "the same for everybody";
}

const UNLIMITED = "unlimited";

/** Sets the limits of a user, after the dialog has shown the changes. */
export function SetLimits({ limits: { user, limits, sources } }: { limits: UserLimits }) {
  const before = (name: LimitName) => (sources[name] === "user" ? (limits[name]?.toString() ?? UNLIMITED) : "");
  const [texts, setTexts] = useState<Partial<Record<LimitName, string>>>({});
  const changes = LIMITS.flatMap(([name, title]) => {
    const text = (texts[name] ?? before(name)).trim();
    return text === before(name) ? [] : [{ name, title, text }];
  });
  const act = async (given: Values) => {
    const set = LIMITS.flatMap(([name, title]) => {
      const text = given[name];
      return text === undefined ? [] : [[name, limitIn(text, title)]];
    });
    await ask("PUT", limitsPath(user), { body: Object.fromEntries(set) });
  };
  return (
    <Dialog title={`Set the limits of ${user}`} action="Set the limits" act={act}>
      <p class="quiet">
        A whole number, or {UNLIMITED}. If a field is empty, the limit of the user's groups or of everybody counts.
      </p>
      <div class="limit-fields">
        {LIMITS.map(([name, title]) => (
          <Field
            key={name}
            name={name}
            label={title}
            initial={before(name)}
            onValue={(text) => setTexts((all) => ({ ...all, [name]: text }))}
            placeholder={sources[name] === "user" ? undefined : shown(limits[name])}
          />
        ))}
      </div>
      <div role="status">
        <ul class="effects">
          {changes.map(({ name, title, text }) => (
            <li key={name}>
              {title}: {shown(limits[name])} → {text === "" ? "as for the groups or for everybody" : text}
            </li>
          ))}
          <li>
            {changes.length === 0 ? "Nothing changes." : "All hosts follow within a second. Turns that run go on."}
          </li>
        </ul>
      </div>
    </Dialog>
  );
}

/** Removes the limits that were set for this user alone, after a confirmation. */
function ClearLimits({ limits: { user, limits, sources } }: { limits: UserLimits }) {
  const act = async () => await ask("PUT", limitsPath(user), { body: {} });
  const own = LIMITS.filter(([name]) => sources[name] === "user");
  const effects = [
    ...own.map(([name, title]) => `${title}: ${shown(limits[name])} no longer counts.`),
    "The limits of the user's groups, or of everybody, count again.",
    "All hosts follow within a second. Turns that run go on.",
  ];
  return <Dialog title={`Clear the limits of ${user}?`} action="Clear the limits" isDangerous {...{ effects, act }} />;
}

function shown(limit: number | null): string {
  return limit === null ? UNLIMITED : amount(limit);
}

/** @throws Problem if the text is neither a number nor `unlimited` */
function limitIn(text: string, title: string): number | null {
  if (text.toLowerCase() === UNLIMITED) return null;
  if (/^[1-9]\d{0,14}$/.test(text)) return Number(text);
  throw new Problem({
    status: 0,
    detail: `${title}: "${text}" is not a limit.`,
    suggestions: [`Enter a whole number from 1, or ${UNLIMITED}.`],
  });
}

const LIMITS: readonly (readonly [LimitName, title: string])[] = [
  ["turnsPerMinute", "Turns per minute"],
  ["concurrentTurns", "Turns at once"],
  ["sessions", "Sessions"],
  ["connections", "Connections"],
  ["tokensPerDay", "Tokens per day"],
  ["tokensPerMonth", "Tokens per month"],
];

export function limitsPath(user: string): string {
  return `/v1/users/${encodeURIComponent(user)}/limits`;
}

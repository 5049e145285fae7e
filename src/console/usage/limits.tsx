import { useCallback, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { LimitName } from "../api/types.js";
import { usePolled } from "../parts/hooks.js";
import { ProblemNotice, type Tone } from "../parts/notice.js";
import { amount } from "../parts/show.js";
import { ClearLimits, SetLimits } from "./limits-dialogs.js";
import { LIMITS, type Limits, limitsPath, type UserLimits } from "./types.js";

const EVERY_MS = 5_000;
/** The fraction of a limit at which the fleet begins to warn. */
const NEAR = 0.8;

/** The limits of a user. Operators may set them. */
export function LimitsOf({ user, isAdmin }: { user: string; isAdmin: boolean }) {
  const [dialog, setDialog] = useState<"set" | "clear" | null>(null);
  const load = useCallback(
    async (signal: AbortSignal): Promise<Limits> =>
      isAdmin
        ? await ask<UserLimits>("GET", limitsPath(user), { signal })
        : await ask<Limits>("GET", "/v1/me", { signal }),
    [user, isAdmin],
  );
  const { value, problem, reload } = usePolled(load, EVERY_MS);
  const close = useCallback(() => setDialog(null), []);
  const hasOwn = LIMITS.some(([name]) => value?.sources?.[name] === "user");
  const given = value?.sources === undefined ? null : { user, ...value, sources: value.sources };
  return (
    <section class="limits" aria-label="Limits">
      <div class="section-head">
        <h2>Limits</h2>
        {given !== null && (
          <span class="actions">
            <button type="button" class="button small" onClick={() => setDialog("set")}>
              Set limits
            </button>
            <button type="button" class="button small" disabled={!hasOwn} onClick={() => setDialog("clear")}>
              Clear limits
            </button>
          </span>
        )}
      </div>
      <ProblemNotice problem={problem} />
      {value !== undefined && (
        <ul class="bars">
          {LIMITS.map(([name, title]) => (
            <Bar key={name} {...{ name, title, ...value }} />
          ))}
        </ul>
      )}
      {given !== null && dialog === "set" && <SetLimits limits={given} close={close} done={reload} />}
      {given !== null && dialog === "clear" && <ClearLimits limits={given} close={close} done={reload} />}
    </section>
  );
}

/** How much of a limit is used, as a bar and in words. */
function Bar({ name, title, limits, used, sources }: Limits & { name: LimitName; title: string }) {
  const [most, has] = [limits[name], used[name]];
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
      {sources !== undefined && <span class="quiet">{sourceOf(sources[name])}</span>}
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

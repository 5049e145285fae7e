import { useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { Problem } from "../api/problem.js";
import type { LimitName } from "../api/types.js";
import { Dialog, Field } from "../parts/dialog.js";
import { amount } from "../parts/show.js";
import { LIMITS, limitsPath, type UserLimits } from "./types.js";

const UNLIMITED = "unlimited";

interface LimitsDialogProps {
  limits: UserLimits;
  close(): void;
  done(): Promise<void>;
}

/** Sets the limits of a user, after the dialog has shown the changes. */
export function SetLimits({ limits: { user, limits, sources }, close, done }: LimitsDialogProps) {
  const before = (name: LimitName) => (sources[name] === "user" ? (limits[name]?.toString() ?? UNLIMITED) : "");
  const [texts, setTexts] = useState<Partial<Record<LimitName, string>>>({});
  const textOf = (name: LimitName) => (texts[name] ?? before(name)).trim();
  const changed = LIMITS.filter(([name]) => textOf(name) !== before(name));
  const act = async () => {
    const set = LIMITS.filter(([name]) => textOf(name) !== "");
    const body = Object.fromEntries(set.map(([name, title]) => [name, limitIn(textOf(name), title)]));
    await ask("PUT", limitsPath(user), { body });
    await done();
  };
  return (
    <Dialog title={`Set the limits of ${user}`} action="Set the limits" act={act} close={close}>
      <p class="quiet">
        A whole number, or {UNLIMITED}. If a field is empty, the limit of the user's groups or of everybody counts.
      </p>
      <div class="limit-fields">
        {LIMITS.map(([name, title], index) => (
          <Field
            key={name}
            label={title}
            isFirst={index === 0}
            value={texts[name] ?? before(name)}
            onValue={(text) => setTexts((all) => ({ ...all, [name]: text }))}
            {...(sources[name] === "user" ? {} : { placeholder: shown(limits[name]) })}
          />
        ))}
      </div>
      <div role="status">
        <ul class="effects">
          {changed.map(([name, title]) => (
            <li key={name}>
              {title}: {shown(limits[name])} →{" "}
              {textOf(name) === "" ? "as for the groups or for everybody" : textOf(name)}
            </li>
          ))}
          <li>
            {changed.length === 0 ? "Nothing changes." : "All hosts follow within a second. Turns that run go on."}
          </li>
        </ul>
      </div>
    </Dialog>
  );
}

/** Removes the limits that were set for this user alone, after a confirmation. */
export function ClearLimits({ limits: { user, limits, sources }, close, done }: LimitsDialogProps) {
  const act = async () => {
    await ask("PUT", limitsPath(user), { body: {} });
    await done();
  };
  return (
    <Dialog title={`Clear the limits of ${user}?`} action="Clear the limits" isDangerous act={act} close={close}>
      <ul class="effects">
        {LIMITS.filter(([name]) => sources[name] === "user").map(([name, title]) => (
          <li key={name}>
            {title}: {shown(limits[name])} no longer counts.
          </li>
        ))}
        <li>The limits of the user's groups, or of everybody, count again.</li>
        <li>All hosts follow within a second. Turns that run go on.</li>
      </ul>
    </Dialog>
  );
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

import { Args } from "@oclif/core";
import type { FleetError, Suggestion } from "../../base/errors.js";
import { isSessionId, meantIds, validateSessionId, withoutCut } from "../../base/ids.js";
import type { Fleet } from "../../fleet/fleet.js";
import { onlyMeant } from "../../hosts/sessions/delete.js";
import { isAsked } from "../prompt.js";
import { given } from "./flags.js";

// Without `ignoreStdin`, oclif reads a missing argument from standard input, which may be the input of a shell loop.

export const optionalSessionArg = Args.string({
  description: "ids of the sessions, or unambiguous beginnings of ids",
  ignoreStdin: true,
});

export const sessionArg = Args.string({
  description: "id of the session, or an unambiguous beginning of it",
  required: true,
  ignoreStdin: true,
  parse: async (value) => sessionReference(value),
});

/** Checks a full or partial session id before the fleet does, so that the error message names the argument. */
export function sessionReference(value: string): string {
  const isCut = value !== withoutCut(value) && isSessionId(withoutCut(value));
  return isCut ? value : validateSessionId(value, "SESSION");
}

/**
 * Returns the full id of the session that the user means. If the user gave only a part of it, prints the full id on
 * standard error, because the user may mean another session. Without `user`, searches the sessions of all users.
 *
 * @param reads whether the command changes nothing. Other commands accept the beginning of an id only from a person at
 * a terminal. In a script, once the session is deleted, the same beginning could match another session.
 */
export async function wholeId(
  fleet: Fleet,
  text: string,
  { user, json, reads = false }: { user?: string | undefined; json: boolean; reads?: boolean },
): Promise<string> {
  if (!reads && !isAsked({ json }) && !text.includes("…")) return text;
  const id = await fleet.sessions.find(sessionReference(text), given({ user }));
  if (id !== text && !json) process.stderr.write(`Session: ${id}\n`);
  return id;
}

/**
 * Like {@link wholeId}, for a command that may change sessions of any user. `unknown` contains the texts that match no
 * session. In a script, looks up only texts with `…`, and takes all others as full ids.
 */
export async function wholeIds(
  fleet: Fleet,
  texts: readonly string[],
  { json }: { json: boolean },
): Promise<{ ids: string[]; unknown: string[] }> {
  const looks = isAsked({ json }) ? texts : texts.filter((text) => text.includes("…"));
  const meant = new Map<string, string | undefined>();
  if (looks.length > 0) {
    const found = await fleet.sessions.matching(looks.map(sessionReference));
    for (const [at, text] of looks.entries()) meant.set(text, onlyMeant(text, found[at] ?? []));
  }
  const ids: string[] = [];
  const unknown: string[] = [];
  for (const text of texts) {
    const id = meant.has(text) ? meant.get(text) : text;
    if (id !== undefined && id !== text && !json) process.stderr.write(`Session: ${id}\n`);
    if (id === undefined) unknown.push(text);
    else ids.push(id);
  }
  return { ids, unknown };
}

/** Replaces each text with the full id of the session that it means. A text that matches no session stays unchanged. */
export function meantAmong(sessions: readonly { id: string }[], texts: readonly string[]): string[] {
  const ids = sessions.map(({ id }) => id);
  return texts.map((text) => onlyMeant(text, meantIds(text, ids)) ?? text);
}

/**
 * Adds to an error of `delete` the full ids that the user may have meant, because `delete` needs full ids.
 *
 * @param isWhole whether the caller has already replaced the texts with full ids
 */
export async function withWholeIds(
  error: FleetError,
  fleet: Fleet,
  { ids, user, isWhole }: { ids: readonly string[]; user: string | undefined; isWhole: boolean },
): Promise<FleetError> {
  if (!["FLEET_SESSION_NOT_FOUND", "FLEET_USAGE_INVALID"].includes(error.code)) return error;
  const missing = ids.filter((id) => !((error.outcome.deleted ?? []) as string[]).includes(id));
  const found = isWhole ? [] : await fleet.sessions.matching(missing, given({ user }));
  const whole = found.flatMap((meant, at) => (meant.length === 1 && meant[0] !== missing[at] ? meant : []));
  const advice: Suggestion[] = [];
  if (whole.length > 0) {
    const only = user === undefined ? "" : ` --user ${user}`;
    advice.push("A script and --yes need whole ids, because nobody is asked.");
    advice.push(`copilotfleet delete ${whole.join(" ")}${only}`);
  }
  return error.reworded(({ suggestions }) => ({ suggestions: [...advice, ...suggestions] }));
}

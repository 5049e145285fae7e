import { Args } from "@oclif/core";
import { type FleetError, isFleetError, type Suggestion } from "../../errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { isSessionId, validateSessionId } from "../../model/ids.js";
import { meantIds, withoutCut } from "../../model/reference.js";
import { onlyMeant } from "../../peers/sessions/meant.js";
import { kindNamed } from "../meant-arguments.js";
import { isAsked } from "../prompt/confirm.js";
import { given } from "./flags.js";

// Without `ignoreStdin`, oclif reads a missing argument from standard input. A loop in a shell would lose its input.

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

/** Checks the id of a session, or a part of one, before the fleet does, so that the error message names the argument. */
export function sessionReference(value: string): string {
  const isCut = value !== withoutCut(value) && isSessionId(withoutCut(value));
  return isCut ? value : validateSessionId(value, "SESSION");
}

/**
 * The whole id of the session that the user means. If the user did not give the whole id, names the session on standard
 * error, because the user may mean another one. Without `user`, looks among the sessions of all users.
 *
 * @param reads whether the command changes nothing. Other commands take the beginning of an id only from a person at a
 * terminal, because in a script the beginning of a deleted id could name another session.
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

/** Replaces each text by the whole id of the session that it means. A text that means no session stays as it is. */
export function meantAmong(sessions: readonly { id: string }[], texts: readonly string[]): string[] {
  const ids = sessions.map(({ id }) => id);
  return texts.map((text) => onlyMeant(text, meantIds(text, ids)) ?? text);
}

/** Completes the error of `delete`, which needs whole ids, by the whole ids that the user may have meant. */
export async function withWholeIds(
  error: FleetError,
  fleet: Fleet,
  { ids, user }: { ids: readonly string[]; user: string | undefined },
): Promise<FleetError> {
  if (!["FLEET_SESSION_NOT_FOUND", "FLEET_SESSION_ID_INVALID"].includes(error.code)) return error;
  const missing = ids.filter((id) => !((error.outcome.deleted ?? []) as string[]).includes(id));
  const found = await Promise.all(
    missing.map(async (text) => {
      try {
        const id = await fleet.sessions.find(text, given({ user }));
        return id === text ? [] : [id];
      } catch (failure) {
        if (isFleetError(failure)) return [];
        throw failure;
      }
    }),
  );
  const whole = found.flat();
  const [kind = "", name] = missing;
  const advice: Suggestion[] = [];
  if (whole.length > 0) {
    const only = user === undefined ? "" : ` --user ${user}`;
    advice.push("A script and --yes need whole ids, because nobody is asked.");
    advice.push(`copilotfleet delete ${whole.join(" ")}${only}`);
  } else if (kindNamed(kind) === "server" && name !== undefined && isSessionId(name)) {
    advice.push(`copilotfleet stop ${name} # stops a server and keeps its sessions`);
  }
  return error.reworded(({ suggestions }) => ({ suggestions: [...advice, ...suggestions] }));
}

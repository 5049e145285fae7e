import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "@oclif/core";
import { printable } from "../../config/values/text.js";
import { recordedIds } from "../../fleet/recorded-ids.js";
import { type Candidate, type Place, placeAt } from "./place.js";

/** How long the fleet may take to answer, in milliseconds. The shell is blocked during this time. */
const ANSWER_MS = 1_000;

/**
 * Matches text that has no special meaning in any shell. All ids match. Other candidates might not: a project's
 * configuration file may name a model `$(command)`, and the environment may contain variables with any name.
 */
const HARMLESS = /^(?:--)?[\p{L}\p{M}\p{N}_.@+:/][\p{L}\p{M}\p{N}_.@+:/-]*$/u;

export interface Found {
  candidates: Candidate[];
  /** Whether the shell should offer names of files. */
  files: boolean;
  /** Whether the fleet did not answer in time. If so, call {@link endAtOnce} after printing. */
  isLate: boolean;
}

/** Finds the candidates for the last word. Never rejects, because an error would disturb the user's prompt. */
export async function findCandidates(words: readonly string[], config: Config): Promise<Found> {
  const place = placeAt(words, config);
  const ids = await idsAt(place);
  const values = [...place.fixed, ...(ids ?? []).map((value) => ({ value, description: null }))];
  const current = words.at(-1) ?? "";
  const given = new Set(place.prefix === "" ? words.slice(0, -1) : []);
  const candidates = values
    .filter(({ value }) => HARMLESS.test(value) && (value.startsWith("--") || !given.has(value)))
    .map(({ value, description }) => ({
      value: place.prefix + value,
      description: description === null ? null : printable(description),
    }))
    .filter(({ value }) => value.startsWith(current));
  return { candidates, files: place.files, isLate: ids === null };
}

/** The ids that the user may type at this place; null if the fleet does not answer in time, empty if it fails. */
async function idsAt({ ids, user, configFile }: Place): Promise<string[] | null> {
  if (ids.length === 0) return [];
  try {
    const options = { env: process.env, cwd: process.cwd(), user, configFile };
    return await Promise.race([recordedIds(ids, options), delay(ANSWER_MS, null, { ref: false })]);
  } catch {
    // For example, the configuration is wrong, or Redis cannot be reached. The completed command will report it.
    return [];
  }
}

/** Ends the process, because a store that does not answer would keep it alive while the user waits at the prompt. */
export function endAtOnce(): never {
  process.exit(0);
}

import { existsSync, readFileSync, renameSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseObject } from "../config/values/json.js";
import { busyError } from "../store/failures.js";
import { sweepFolder } from "../store/file/commit/sweep.js";
import { type Derived, derive, dropDerived } from "../store/file/events/derive.js";
import { LogFiles } from "../store/file/events/files.js";
import { readIfThere } from "../store/file/failures.js";
import { type Conceal, hashHolds, type Line } from "./line.js";
import type { Pseudonyms } from "./pseudonyms.js";

const DEADLINE_MS = 30_000;
const MOST_PAUSE_MS = 50;

/** Whose events to conceal: a user, and the names that the user gave to sessions and servers. */
export interface Concealed {
  user: string;
  names: readonly string[];
}

/**
 * Puts pseudonyms in place of names into the events of this host. The chain stays whole, because the hashes cover names only by
 * their pseudonyms. Events that concern the user lose all of their names, also names that are not listed: the end of a session
 * may be noted after its record is gone.
 *
 * @throws FleetError `FLEET_STATE_BUSY` when other processes change the log all the time
 */
export async function concealInEvents(stateRoot: string, concealed: Concealed, pseudonyms: Pseudonyms): Promise<void> {
  const files = new LogFiles(stateRoot);
  const rewrite = rewriteOf(concealed, pseudonyms);
  for (const until = performance.now() + DEADLINE_MS; ; ) {
    // Whatever another process read before this moment, it cannot put it back into the log.
    dropDerived(files);
    await sweepFolder(files.open);
    if (!(await concealOnce(files, rewrite))) return;
    if (performance.now() > until) throw busyError(files.open, "could not be rewritten");
    await sleep(Math.random() * MOST_PAUSE_MS); // Two purges must not stop each other forever.
  }
}

/** @returns whether a file contained a name, or is gone */
async function concealOnce(files: LogFiles, rewrite: Rewrite): Promise<boolean> {
  // In this order, because batches become part of segments, and never the other way.
  const batches = files.listBatches().map((first) => files.batchPath(first));
  const paths = [...batches, ...files.listAllSegments().map(({ path }) => path)];
  let isChanged = false;
  for (const path of paths) {
    const found = rewritten(path, rewrite);
    if (found === null) continue;
    isChanged = true;
    if (found === undefined) continue;
    await derive(files, { make: () => rewritten(path, rewrite) ?? undefined, place: replaceIfThere });
  }
  return isChanged;
}

interface Rewrite {
  names: ReadonlySet<string>;
  /** Finds one of the names as a whole word. */
  asWord: RegExp;
  /** The user, first by name and then by pseudonyms. */
  of: readonly string[];
  /** The texts of which a line must contain one, to be changed. */
  traces: readonly string[];
  pseudonyms: Pseudonyms;
}

function rewriteOf(concealed: Concealed, pseudonyms: Pseudonyms): Rewrite {
  const names = new Set([concealed.user, ...concealed.names]);
  const of = [concealed.user, ...pseudonyms.all.map((conceal) => conceal(concealed.user))];
  const traces = [...names, ...of].map((name) => JSON.stringify(name).slice(1, -1));
  const escaped = [...names].map((name) => name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  // A dot, a hyphen or an @ between letters is part of a longer name.
  const asWord = new RegExp(`(?<![\\p{L}\\p{N}_][.@-]?)(?:${escaped.join("|")})(?![.@-]?[\\p{L}\\p{N}_])`, "u");
  return { names, asWord, of, traces, pseudonyms };
}

/** The file with pseudonyms. Null if it has no names, and undefined if it is gone. */
function rewritten(path: string, rewrite: Rewrite): Derived | null | undefined {
  const before = readIfThere(path, () => readFileSync(path, "utf8"));
  if (before === undefined) return undefined;
  const mayName = (text: string) => rewrite.traces.some((trace) => text.includes(trace));
  if (!mayName(before)) return null;
  const lines = before.split("\n").map((line) => (mayName(line) ? concealedLine(line, rewrite) : line));
  const text = lines.join("\n");
  return text === before ? null : { path, text };
}

/** A file that was deleted since it was read must not come back. `removeSegments` prevents it from this moment on. */
function replaceIfThere(scratch: string, path: string): void {
  if (existsSync(path)) renameSync(scratch, path);
}

function concealedLine(line: string, rewrite: Rewrite): string {
  const { names, of, pseudonyms } = rewrite;
  const parsed = parseObject(line);
  if (parsed === undefined) return line;
  const event = parsed as unknown as Line;
  const conceal: Conceal = pseudonyms.all.find((each) => hashHolds(event, each)) ?? pseudonyms.of;
  const hidden = (value: string | null) => (value !== null && names.has(value) ? conceal(value) : value);
  // The user may have given a session the name of another user.
  const hiddenUser = (name: string | null) => (name === of[0] ? conceal(name) : name);
  const isOfUser = includes(of, event.user);
  const hiddenId = (id: string | null) => (isOfUser && id !== null ? conceal(id) : hidden(id));
  return JSON.stringify({
    ...event,
    actor: { ...event.actor, user: hiddenUser(event.actor.user), os: hiddenUser(event.actor.os) },
    user: hiddenUser(event.user),
    sessionId: hiddenId(event.sessionId),
    serverId: hiddenId(event.serverId),
    detail: event.detail !== null && isTelling(event, event.detail, rewrite) ? conceal(event.detail) : event.detail,
  });
}

/** Whether the detail of an event contains a name, or a text of the user. */
function isTelling({ type, actor, user }: Line, detail: string, { names, asWord, of }: Rewrite): boolean {
  // The details of the fleet's own events name no user, and the heads of chains must stay legible.
  if (type === "host.head" || type === "events.shortened") return false;
  // The user wrote the reason.
  if (type === "session.stolen" && includes(of, actor.user)) return true;
  // In an event that concerns the user, a longer word may be a name that the user chose.
  return includes(of, user) ? [...names].some((name) => detail.includes(name)) : asWord.test(detail);
}

function includes(of: readonly string[], name: string | null): boolean {
  return name !== null && of.includes(name);
}

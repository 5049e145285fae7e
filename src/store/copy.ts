import { isDeepStrictEqual } from "node:util";
import { FleetError, quote } from "../base/errors.js";
import type { OnProgress } from "../base/progress.js";
import type { Registry } from "../base/server.js";
import type { SessionRecord } from "../base/session.js";
import { compareText } from "../base/values/text.js";
import type { UnreadableError } from "./failures.js";
import { LIMITS } from "./limits.js";
import type { AnyKind } from "./rows.js";
import { SESSIONS } from "./sessions.js";
import type { Store } from "./store.js";
import { Table } from "./table.js";
import { KEYED_TURNS, TOKEN_USES, TOKENS } from "./tokens.js";

const AT_ONCE = 50;

/**
 * Everything that is copied from one store to another. Leases are not copied, because `store migrate` refuses to run if
 * a session has a lease. Placements are not copied, because the fleet places users again. The ledger is not copied,
 * because each host sends its own lines to a new store in Redis.
 */
const COPIED = [SESSIONS, TOKENS, TOKEN_USES, LIMITS, KEYED_TURNS] as const;

export interface Contents {
  registry: Registry;
  /** The records of each kind, in the order of their ids. */
  records: ReadonlyMap<AnyKind, ReadonlyMap<string, object>>;
  highestFence: number;
}

/**
 * Reads everything that {@link copyContents} copies.
 *
 * @param leftOut receives a message for each idempotency key whose record cannot be read
 * @throws FleetError that names all sessions whose records cannot be read, because a copy without them would lose them
 */
export async function readContents(store: Store, leftOut?: (message: string) => void): Promise<Contents> {
  const registry = await store.registry.read();
  const unreadable: Unreadable[] = [];
  const onUnreadable = new Map<AnyKind, (id: string, error: UnreadableError) => void>([
    [SESSIONS, (id, error) => void unreadable.push({ id, error })],
    [
      KEYED_TURNS,
      (name, { message }) =>
        leftOut?.(
          `The idempotency key with the record ${quote(name)} was not copied, so it would run its prompt again. ${message}`,
        ),
    ],
  ]);
  const records = new Map<AnyKind, Map<string, object>>();
  for (const kind of COPIED) {
    const found = new Map<string, object>();
    const rows = new Table<object>(store.rows, kind as AnyKind).each({}, onUnreadable.get(kind));
    for await (const { id, record } of rows) found.set(id, record);
    records.set(kind, found);
  }
  refuseUnreadable(unreadable);
  return { registry, records, highestFence: await store.leases.highestFence() };
}

export function sessionsIn({ records }: Contents): SessionRecord[] {
  return [...(records.get(SESSIONS) ?? []).values()] as SessionRecord[];
}

export function countOfTokens({ records }: Contents): number {
  return records.get(TOKENS)?.size ?? 0;
}

interface Unreadable {
  id: string;
  error: UnreadableError;
}

function refuseUnreadable(unreadable: readonly Unreadable[]): void {
  const [first] = unreadable;
  if (first === undefined) return;
  const names = unreadable.map(({ id }) => quote(id)).sort(compareText);
  const whose = names.length === 1 ? `record of session ${names[0]}` : `records of sessions ${names.join(", ")}`;
  const suggestions = [...new Set(unreadable.flatMap(({ error }) => error.suggestions))];
  throw first.error.reworded(({ message }) => ({
    message: `Nothing was copied, because the ${whose} cannot be read. ${message}`,
    suggestions,
  }));
}

export function isEmpty({ registry, records }: Contents): boolean {
  return Object.keys(registry.servers).length === 0 && [...records.values()].every(({ size }) => size === 0);
}

/**
 * Writes the contents to an empty store and verifies them. If this fails or is interrupted, removes the contents from
 * that store.
 */
export async function copyContents(
  contents: Contents,
  from: Store,
  to: Store,
  { signal, onProgress }: { signal: AbortSignal; onProgress?: OnProgress | undefined },
): Promise<void> {
  const copy = adapted(contents, to);
  const total = [...copy.records.values()].reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  try {
    // Raise the fences first, so that no new lease on a copied session gets a lower fence than an earlier one.
    await to.leases.raiseFences(contents.highestFence);
    for (const [kind, records] of copy.records) {
      const changes = [...records].map(([id, record]) => ({ kind, id, from: null, to: record }));
      for (let at = 0; at < changes.length; at += AT_ONCE) {
        signal.throwIfAborted();
        const part = changes.slice(at, at + AT_ONCE);
        if (!(await to.rows.commit(part))) throw unlike();
        done += part.length;
        onProgress?.({ done, total, turns: [] });
      }
    }
    signal.throwIfAborted();
    await to.registry.update((draft) => {
      const { servers, ...rest } = contents.registry;
      Object.assign(draft, rest);
      Object.assign(draft.servers, servers);
    });
    await verify(contents, from, to);
    signal.throwIfAborted();
  } catch (error) {
    await takeBack(copy, to).catch((again: unknown) => {
      const why = [error, again].map((each) => (each instanceof Error ? each.message : String(each)));
      throw new FleetError("FLEET_TARGET_EXISTS", `The copy could not be removed: ${why.join(" / ")}`, {
        suggestions: ["Clear the target, and run the command again."],
        cause: error,
      });
    });
    throw error;
  }
}

async function verify(contents: Contents, from: Store, to: Store): Promise<void> {
  const withoutFence = ({ highestFence: _, ...rest }: Contents) => rest;
  if (!isDeepStrictEqual(withoutFence(await readContents(to)), withoutFence(adapted(contents, to)))) throw unlike();
  if (!isDeepStrictEqual(await readContents(from), contents)) {
    throw new FleetError("FLEET_STATE_BUSY", "The fleet changed while it was being copied, so the copy was removed.", {
      suggestions: ["Run the command again while nobody uses the fleet."],
    });
  }
}

function unlike(): FleetError {
  const message = "The copy does not match the source because another process is writing to the target.";
  return new FleetError("FLEET_STATE_BUSY", message, {
    suggestions: ["Make sure that nothing uses the target, and run the command again."],
  });
}

/** The contents for the target store. A session names this host if the target has hosts, and never contains a term. */
function adapted(contents: Contents, { hosts }: Store): Contents {
  const records = new Map(contents.records);
  const sessions = sessionsIn(contents).map(({ host: _, term: __, ...record }): [string, SessionRecord] => [
    record.id,
    hosts === null ? record : { ...record, host: hosts.own },
  ]);
  records.set(SESSIONS, new Map(sessions));
  return { ...contents, records };
}

/**
 * Removes the copied records from the target, but not the records of other writers. The fences stay raised, which is
 * harmless.
 */
async function takeBack({ registry, records }: Contents, to: Store): Promise<void> {
  for (const [kind, ours] of records) {
    const table = new Table<object>(to.rows, kind);
    for (const [id, record] of ours) await table.deleteMany([id], (found) => isDeepStrictEqual(found, record));
  }
  await to.registry.update((draft) => {
    for (const [id, server] of Object.entries(registry.servers)) {
      if (isDeepStrictEqual(draft.servers[id], server)) delete draft.servers[id];
    }
    if (draft.placed === registry.placed) delete draft.placed;
  });
}

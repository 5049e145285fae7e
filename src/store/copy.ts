import { isDeepStrictEqual } from "node:util";
import { FleetError, quote } from "../base/errors.js";
import type { OnProgress } from "../base/progress.js";
import type { Registry } from "../base/server.js";
import type { KeyedTurn, SessionRecord } from "../base/session.js";
import type { TokenRecord } from "../base/token.js";
import type { UserLimitRecord } from "../base/usage.js";
import { compareText } from "../base/values/text.js";
import type { UnreadableError } from "./failures.js";
import type { OnUnreadable, Store } from "./ports.js";

const AT_ONCE = 50;

/**
 * Everything that is copied from one store to another. Leases are not copied, because `store migrate` refuses to run if
 * a session has a lease. Placements are not copied, because the fleet places users again. The ledger is not copied,
 * because each host sends its own lines to a new store in Redis.
 */
export interface Contents {
  registry: Registry;
  sessions: SessionRecord[];
  tokens: TokenRecord[];
  limits: UserLimitRecord[];
  keyedTurns: KeyedTurn[];
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
  const byId = (a: { id: string }, b: { id: string }) => compareText(a.id, b.id);
  const unreadable: Unreadable[] = [];
  const sessions = (await store.sessions.list((id, error) => void unreadable.push({ id, error }))).sort(byId);
  refuseUnreadable(unreadable);
  const tokens = (await store.tokens.list()).sort(byId);
  const limits = (await store.limits.list()).sort((a, b) => compareText(a.user, b.user));
  const onUnreadable: OnUnreadable = (name, { message }) =>
    leftOut?.(
      `The idempotency key with the record ${quote(name)} was not copied, so it would run its prompt again. ${message}`,
    );
  const byKey = (a: KeyedTurn, b: KeyedTurn) => compareText(a.user, b.user) || compareText(a.key, b.key);
  const keyedTurns = (await store.keyedTurns.list(null, onUnreadable)).sort(byKey);
  return { registry, sessions, tokens, limits, keyedTurns, highestFence: await store.leases.highestFence() };
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

export function isEmpty({ registry, sessions, tokens, limits, keyedTurns }: Contents): boolean {
  return [Object.keys(registry.servers), sessions, tokens, limits, keyedTurns].every(({ length }) => length === 0);
}

/**
 * Writes the contents to an empty store and verifies them. If this fails or is interrupted, removes the contents from that
 * store.
 */
export async function copyContents(
  contents: Contents,
  from: Store,
  to: Store,
  { signal, onProgress }: { signal: AbortSignal; onProgress?: OnProgress | undefined },
): Promise<void> {
  const total = contents.sessions.length + contents.tokens.length;
  const ids: string[] = [];
  const tokens: string[] = [];
  const limits: UserLimitRecord[] = [];
  const keyedTurns: KeyedTurn[] = [];
  try {
    // Raise the fences first, so that no new lease on a copied session gets a lower fence than an earlier one.
    await to.leases.raiseFences(contents.highestFence);
    for (let at = 0; at < contents.sessions.length; at += AT_ONCE) {
      signal.throwIfAborted();
      const part = contents.sessions.slice(at, at + AT_ONCE);
      ids.push(...part.map(({ id }) => id));
      await allDone(part.map((record) => to.sessions.create(adapted(record, to))));
      onProgress?.({ done: ids.length, total, turns: [] });
    }
    for (const token of contents.tokens) {
      signal.throwIfAborted();
      tokens.push(token.id);
      await to.tokens.create(token);
      const [at] = await from.tokens.lastUses([token.id]);
      if (typeof at === "string") await to.tokens.used(token.id, at);
      onProgress?.({ done: ids.length + tokens.length, total, turns: [] });
    }
    for (const record of contents.limits) {
      signal.throwIfAborted();
      limits.push(record);
      const { user, groups, ...own } = record;
      await to.limits.set(user, () => own);
      await to.limits.noteGroups(user, groups);
    }
    for (const turn of contents.keyedTurns) {
      signal.throwIfAborted();
      keyedTurns.push(turn);
      await to.keyedTurns.create(turn);
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
    await takeBack(contents, { ids, tokens, limits, keyedTurns }, to).catch((again: unknown) => {
      const why = [error, again].map((each) => (each instanceof Error ? each.message : String(each)));
      throw new FleetError("FLEET_TARGET_EXISTS", `The copy could not be removed: ${why.join(" / ")}`, {
        suggestions: ["Clear the target, and run the command again."],
        cause: error,
      });
    });
    throw error;
  }
}

/** Waits for all writes, even if one fails, because {@link takeBack} cannot remove what is still being written. */
async function allDone(writes: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(writes)).find((write) => write.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}

async function verify(contents: Contents, from: Store, to: Store): Promise<void> {
  const written = await readContents(to);
  const adaptedContents = { ...contents, sessions: contents.sessions.map((record) => adapted(record, to)) };
  if (!isDeepStrictEqual(records(written), records(adaptedContents))) {
    const message = "The copy does not match the source because another process is writing to the target.";
    throw new FleetError("FLEET_STATE_BUSY", message, {
      suggestions: ["Make sure that nothing uses the target, and run the command again."],
    });
  }
  if (!isDeepStrictEqual(await readContents(from), contents)) {
    throw new FleetError("FLEET_STATE_BUSY", "The fleet changed while it was being copied, so the copy was removed.", {
      suggestions: ["Run the command again while nobody uses the fleet."],
    });
  }
}

/** The session's record for the target store. It names this host if the target has hosts, and never contains a term. */
function adapted({ host: _, term: __, ...record }: SessionRecord, { hosts }: Store): SessionRecord {
  return hosts === null ? record : { ...record, host: hosts.own };
}

function records({ highestFence: _, ...rest }: Contents): unknown {
  return rest;
}

/**
 * Removes the copied records from the target, but not the records of other writers. The fences stay raised, which is
 * harmless.
 */
async function takeBack(
  { registry, sessions, tokens }: Contents,
  written: { ids: readonly string[]; tokens: readonly string[] } & Pick<Contents, "limits" | "keyedTurns">,
  to: Store,
): Promise<void> {
  const ours = new Map(sessions.map((record) => [record.id, adapted(record, to)]));
  for (const token of tokens) {
    if (written.tokens.includes(token.id) && isDeepStrictEqual(await to.tokens.read(token.id), token))
      await to.tokens.delete(token.id);
  }
  for (const record of written.limits) {
    const written = await to.limits.read(record.user);
    // The groups are written after the limits, so an interrupted copy may have the limits without the groups.
    const isOurs = [record, { ...record, groups: [] }].some((each) => isDeepStrictEqual(written, each));
    if (isOurs) await to.limits.forget(record.user);
  }
  for (const turn of written.keyedTurns) {
    const { user, key } = turn;
    if (isDeepStrictEqual(await to.keyedTurns.read(user, key), turn)) await to.keyedTurns.delete(user, key);
  }
  await to.sessions.deleteMany(written.ids, (record) => isDeepStrictEqual(record, ours.get(record.id)));
  await to.registry.update((draft) => {
    for (const [id, server] of Object.entries(registry.servers)) {
      if (isDeepStrictEqual(draft.servers[id], server)) delete draft.servers[id];
    }
    if (draft.placed === registry.placed) delete draft.placed;
  });
}

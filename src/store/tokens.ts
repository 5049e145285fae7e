import { isDeepStrictEqual } from "node:util";
import type { Placement, Purge, UserPlacement } from "../base/host.js";
import { keyDigest, userDigest } from "../base/ids.js";
import type { KeyedTurn } from "../base/session.js";
import { assertTokenId, endedBy, isTokenId, type TokenEnd, type TokenRecord, tokenExists } from "../base/token.js";
import { isDamaged } from "./failures.js";
import type { KeyedTurnStore, OnUnreadable, PlacementStore, PurgeStore, TokenStore } from "./ports.js";
import { type FleetRows, kind } from "./rows.js";
import { Table } from "./table.js";

export const TOKENS = kind<TokenRecord>("token", { assertId: assertTokenId });
export const TOKEN_USES = kind<{ at: string }>("token-use", { home: "use" });
const TOKEN_ENDS = kind<TokenEnd>("token-end", { home: "host" });

/** The tokens, when each was used last, and which of them this host knows to have ended. */
export class Tokens implements TokenStore {
  readonly #tokens: Table<TokenRecord>;
  readonly #uses: Table<{ at: string }>;
  /** Null if nobody but this fleet can write to the store, so that no host needs a memory of its own. */
  readonly #ends: Table<TokenEnd> | null;

  readonly #warn: (message: string) => void;

  constructor(rows: FleetRows, { isShared, warn }: { isShared: boolean; warn: (message: string) => void }) {
    this.#warn = warn;
    this.#tokens = new Table(rows, TOKENS);
    this.#uses = new Table(rows, TOKEN_USES);
    this.#ends = isShared ? new Table(rows, TOKEN_ENDS) : null;
  }

  async read(id: string): Promise<TokenRecord | null> {
    if (!isTokenId(id)) return null;
    const [record, end] = await Promise.all([this.#readIfSound(id), this.#ends?.read(id)]);
    if (record === null || end == null) return record;
    return end.at === null ? null : endedBy(record, end.at);
  }

  /** A token that somebody else wrote to Redis counts as unknown. */
  async #readIfSound(id: string): Promise<TokenRecord | null> {
    try {
      return await this.#tokens.read(id);
    } catch (error) {
      if (this.#ends === null || !isDamaged(error)) throw error;
      this.#warn(error.message);
      return null;
    }
  }

  async create(record: TokenRecord): Promise<void> {
    assertTokenId(record.id);
    if (!(await this.#tokens.create(record.id, record))) throw tokenExists(record.id);
  }

  async endBy(id: string, at: string): Promise<TokenRecord | null> {
    if (!isTokenId(id)) return null;
    return await this.#tokens.update(id, (draft) => {
      draft.record = draft.record && endedBy(draft.record, at);
      return draft.record;
    });
  }

  async used(id: string, at: string): Promise<void> {
    if ((await this.read(id)) === null) return;
    await this.#uses.put(id, { at });
    // If the token was deleted before this record was written, nobody else would delete the record.
    if ((await this.read(id)) === null) await this.#uses.delete(id);
  }

  async lastUses(ids: readonly string[]): Promise<(string | null)[]> {
    const uses = await this.#uses.rows.read(TOKEN_USES, ids);
    return uses.map((use) => use?.record.at ?? null);
  }

  async delete(id: string): Promise<boolean> {
    if (!isTokenId(id)) return false;
    const existed = await this.#tokens.delete(id);
    await this.#uses.delete(id);
    return existed;
  }

  async list(): Promise<TokenRecord[]> {
    // Only warn about an unreadable record, so that the other tokens can still be listed and revoked.
    const records = await this.#tokens.list({}, (_, error) => this.#warn(error.message));
    const ends = new Map((await this.notedEnds()).map((end) => [end.id, end.at]));
    return records.flatMap((record) => {
      const at = ends.get(record.id);
      if (at === undefined) return record;
      return at === null ? [] : endedBy(record, at);
    });
  }

  async noteEnd(end: TokenEnd): Promise<void> {
    assertTokenId(end.id);
    await this.#ends?.update(end.id, (draft) => {
      const known = draft.record;
      const isEarlier = known === null || (known.at !== null && (end.at === null || end.at < known.at));
      if (isEarlier) draft.record = end;
    });
  }

  async notedEnds(): Promise<TokenEnd[]> {
    return (await this.#ends?.list()) ?? [];
  }

  /** Forgets ends of tokens that would have expired by now anyway. @param now in milliseconds since the epoch */
  async forgetEnds(now: number): Promise<void> {
    const over = (await this.notedEnds()).filter(({ until }) => until !== null && Date.parse(until) < now);
    for (const { id } of over) await this.#ends?.delete(id);
  }

  async isNotedRevoked(id: string): Promise<boolean> {
    return (await this.#ends?.read(id))?.at === null;
  }
}

export const KEYED_TURNS = kind<KeyedTurn>("keyed-turn", { by: { user: ({ user }) => user } });

export class KeyedTurns implements KeyedTurnStore {
  readonly #table: Table<KeyedTurn>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, KEYED_TURNS);
  }

  async read(user: string, key: string): Promise<KeyedTurn | null> {
    return await this.#table.read(nameOf(user, key));
  }

  async create(record: KeyedTurn): Promise<boolean> {
    return await this.#table.create(nameOf(record.user, record.key), record);
  }

  async replace(record: KeyedTurn): Promise<void> {
    await this.#table.put(nameOf(record.user, record.key), record);
  }

  async delete(user: string, key: string): Promise<void> {
    await this.#table.delete(nameOf(user, key));
  }

  async count(user: string): Promise<number> {
    return await this.#table.rows.count(KEYED_TURNS, { by: "user", value: user });
  }

  async list(user: string | null, onUnreadable?: OnUnreadable): Promise<KeyedTurn[]> {
    return await this.#table.list(user === null ? {} : { by: "user", value: user }, onUnreadable ?? (() => undefined));
  }
}

/** The key can be any text, so the id contains digests. */
function nameOf(user: string, key: string): string {
  return `${userDigest(user)}.${keyDigest(key)}`;
}

export const PLACEMENTS = kind<UserPlacement>("placement");

export class Placements implements PlacementStore {
  readonly #table: Table<UserPlacement>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, PLACEMENTS);
  }

  async read(user: string): Promise<Placement | null> {
    return (await this.#table.read(user))?.placement ?? null;
  }

  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    return await this.#table.update(user, (draft) => {
      const current = draft.record?.placement ?? null;
      if (current !== null && !isDeepStrictEqual(current, from)) return current;
      draft.record = { user, placement: to };
      return to;
    });
  }

  async delete(user: string): Promise<void> {
    await this.#table.delete(user);
  }

  async list(): Promise<UserPlacement[]> {
    return await this.#table.list();
  }
}

export const PURGES = kind<Purge>("purge");

export class Purges implements PurgeStore {
  readonly #table: Table<Purge>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, PURGES);
  }

  async read(user: string): Promise<Purge | null> {
    return await this.#table.read(user);
  }

  async begin(purge: Purge): Promise<Purge> {
    return await this.#table.update(purge.user, (draft) => {
      const known = draft.record;
      if (known !== null && known.partlyDone === undefined) return known;
      draft.record = known === null ? purge : joined(purge, known);
      return draft.record;
    });
  }

  async done(user: string, host: string | null): Promise<void> {
    await this.#table.update(user, (draft) => {
      if (draft.record === null) return;
      // A fleet whose host has no name has no other hosts.
      const pending = host === null ? [] : draft.record.pending.filter((each) => each !== host);
      draft.record = pending.length === 0 ? null : { ...draft.record, pending, partlyDone: true };
    });
  }

  async list(): Promise<Purge[]> {
    return await this.#table.list();
  }
}

/** A purge with what a host that was gone during an earlier purge of the user still has to erase. */
function joined(purge: Purge, { pending, sessions = [] }: Purge): Purge {
  return {
    ...purge,
    pending: [...new Set([...purge.pending, ...pending])],
    sessions: [...new Set([...(purge.sessions ?? []), ...sessions])],
  };
}

/** One record, with the key for the pseudonyms on all hosts. */
export const PSEUDONYM_KEYS = kind<{ key: string }>("pseudonym-key");

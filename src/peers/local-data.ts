import type { Purged } from "../data/purge/purge.js";
import type { QuotaPart } from "../model/usage/quota.js";
import { NEVER } from "../runtime/clock.js";
import type { Sessions } from "../sessions/sessions.js";
import type { AnswerOf, Call, ParamsOf } from "./calls/rpc-table.js";

/** The methods of {@link LocalHost} whose code is loaded only when somebody calls them. */
export abstract class LocalData {
  readonly #sessions: Sessions;
  readonly #stateRoot: string;

  constructor(sessions: Sessions, stateRoot: string) {
    this.#sessions = sessions;
    this.#stateRoot = stateRoot;
  }

  async exportSession(request: ParamsOf<"exportSession">, { signal = NEVER }: Call = {}) {
    const { exportHere } = await import("../data/export.js");
    const archives = await this.#archives();
    const name = await archives.newName();
    return { name, ...(await exportHere(this.#sessions.context, archives.pathOf(name), { ...request, signal })) };
  }

  async readArchive({ name, offset }: ParamsOf<"readArchive">): Promise<AnswerOf<"readArchive">> {
    return { bytes: (await (await this.#archives()).read(name, offset)).toString("base64") };
  }

  async writeArchive({ name, offset, bytes }: ParamsOf<"writeArchive">): Promise<AnswerOf<"writeArchive">> {
    const archives = await this.#archives();
    const known = name ?? (await archives.newName());
    await archives.write(known, offset, Buffer.from(bytes, "base64"));
    return { name: known };
  }

  async dropArchive({ name }: ParamsOf<"dropArchive">): Promise<boolean> {
    await (await this.#archives()).remove(name);
    return true;
  }

  async importArchive(
    { name, ...request }: ParamsOf<"importArchive">,
    { signal = NEVER }: Call = {},
  ): Promise<boolean> {
    const { importHere } = await import("../data/import.js");
    const archives = await this.#archives();
    try {
      await importHere(this.#sessions, archives.pathOf(name), { ...request, signal });
      return true;
    } finally {
      await archives.remove(name);
    }
  }

  async purge({ user, dryRun }: ParamsOf<"purge">, { signal = NEVER }: Call = {}): Promise<Purged> {
    const { foreseePurge, purgeHere } = await import("../data/purge/here.js");
    const context = { sessions: this.#sessions, stateRoot: this.#stateRoot, signal };
    if (dryRun) return await foreseePurge(context, user);
    const purged = await purgeHere(context, user);
    const { store, directory } = this.#sessions.context;
    await store.purges.done(user, directory.own);
    return purged;
  }

  /**
   * Finishes this host's part of the purges that were interrupted, or that began while this host was away. A failure
   * does not stop the caller, and the next call tries again.
   */
  protected async finishPurges(signal: AbortSignal): Promise<void> {
    const { store, directory, warn } = this.#sessions.context;
    for (const purge of await store.purges.list()) {
      if (!purge.pending.includes(directory.own)) continue;
      try {
        await this.purge({ user: purge.user, dryRun: false }, { signal });
      } catch (error) {
        signal.throwIfAborted();
        warn(`A purge could not be finished: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  }

  async quota({ user }: ParamsOf<"quota">, { signal = NEVER }: Call = {}): Promise<QuotaPart[] | null> {
    const { quotaOf } = await import("../sessions/use/quota.js");
    return await quotaOf(this.#sessions.context, user, signal);
  }

  async #archives() {
    const { ArchivesUnderWay } = await import("../data/archives.js");
    return new ArchivesUnderWay(this.#stateRoot);
  }
}

import { setTimeout as delay } from "node:timers/promises";
import type { Fleet } from "../../fleet/fleet.js";
import type { Overview } from "../../peers/overview.js";
import { either } from "../../runtime/clock.js";
import type { SortKey } from "../render/lists/list.js";
import { REFRESH_MS } from "../run/live.js";
import { FullScreen, type Key } from "../run/screen.js";
import { perform } from "./actions.js";
import { layOutTop, type Screenful } from "./layout.js";
import { TopModel } from "./model.js";
import type { Snapshot, ViewName } from "./views.js";

/**
 * Shows the fleet on the whole terminal until the user presses q, the signal aborts, or an error occurs. Resolves with
 * the overview that it showed last. Before that, cancels actions that still run; a cancelled drain leaves its server
 * running.
 *
 * @param sort the initial order of the servers
 */
export async function showTop(fleet: Fleet, signal: AbortSignal, sort?: SortKey): Promise<Overview> {
  await using top = new Top(fleet, signal, sort);
  return await top.run();
}

class Top implements AsyncDisposable {
  readonly #fleet: Fleet;
  readonly #model: TopModel;
  readonly #screen = new FullScreen();
  readonly #quit = new AbortController();
  readonly #end: ReturnType<typeof either>;
  readonly #actions = new Set<Promise<void>>();
  /** Aborts when a key or an action makes the content of the screen outdated. */
  #changed = new AbortController();
  #snapshot: Snapshot | undefined;
  /** The content of the screen; undefined until the fleet was read for the first time. */
  #shown: Screenful | undefined;

  constructor(fleet: Fleet, signal: AbortSignal, sort?: SortKey) {
    this.#fleet = fleet;
    this.#model = new TopModel(sort);
    this.#end = either(this.#quit.signal, signal);
    this.#screen.on("resize", () => this.#draw()).on("key", (key) => this.#press(key));
  }

  async run(): Promise<Overview> {
    for (;;) {
      this.#changed = new AbortController();
      this.#snapshot = await look(this.#fleet, this.#model.view);
      this.#draw();
      using pause = either(this.#changed.signal, this.#end.signal);
      await delay(REFRESH_MS, undefined, { signal: pause.signal }).catch(() => "cut short");
      if (this.#end.signal.aborted) return this.#snapshot.overview;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#quit.abort();
    this.#screen[Symbol.dispose]();
    await Promise.all(this.#actions);
    this.#end[Symbol.dispose]();
  }

  #draw(): void {
    if (this.#snapshot === undefined || this.#end.signal.aborted) return;
    this.#shown = layOutTop(this.#model, this.#snapshot, this.#screen.size);
    this.#screen.draw(this.#shown.lines);
  }

  #press(key: Key): void {
    if (this.#shown === undefined) {
      if (key.text === "q") this.#quit.abort();
      return;
    }
    const { table, room } = this.#shown;
    const request = this.#model.press(key, table, room);
    if (request?.kind === "quit") this.#quit.abort();
    if (request?.kind === "look") this.#changed.abort();
    if (request?.kind === "act") {
      const owner = this.#snapshot?.sessions.find(({ id }) => id === request.target)?.owner;
      const act = { ...request, owner, columns: this.#screen.size.columns };
      const acting = perform(this.#fleet, this.#model, act, this.#end.signal).then(() => this.#changed.abort());
      this.#actions.add(acting);
      void acting.finally(() => this.#actions.delete(acting));
    }
    this.#draw();
  }
}

async function look(fleet: Fleet, view: ViewName): Promise<Snapshot> {
  const [overview, sessions] = await Promise.all([
    fleet.hosts.overview(),
    view === "sessions" ? fleet.sessions.list() : [],
  ]);
  // Show the warnings on the screen, because text on standard error would overwrite it.
  return { overview, sessions, warnings: fleet.takeWarnings() };
}

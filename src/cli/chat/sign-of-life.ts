import { colour } from "../render/colour.js";
import { type Report, renderProgress } from "../render/progress.js";
import { shorten } from "../render/table.js";

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/** The row that shows that an operation is still running, and for how long. */
export class SignOfLife {
  readonly #begunAt = performance.now();
  #reported: { report: Report; at: number } | null = null;

  get ageMs(): number {
    return performance.now() - this.#begunAt;
  }

  /** The reason for a wait, which the row shows; null if nothing waits. */
  set reason(report: Report | null) {
    this.#reported = report === null ? null : { report, at: performance.now() };
  }

  row(what: string, columns: number): string {
    const now = performance.now();
    const { report = null, at = now } = this.#reported ?? {};
    const text = renderProgress(what, report, { begunMs: this.ageMs, reportedMs: now - at });
    const frame = FRAMES[Math.floor(now / 100) % FRAMES.length];
    return colour.dim(
      shorten(`${frame} ${text.includes("Ctrl-C") ? text : `${text}. Ctrl-C cancels.`}`, columns, "end"),
    );
  }
}

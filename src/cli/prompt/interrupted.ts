import { constants } from "node:os";

/** Thrown when a signal ends a command. The exit code is the one that shells use for this signal. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  readonly exitCode: number;
  /** A line for the user about the interrupted work. Null if there is nothing to report. */
  note: string | null = null;

  constructor(signal: NodeJS.Signals) {
    super("interrupted");
    this.exitCode = 128 + constants.signals[signal];
  }
}

let onOutputClosed: (() => void) | undefined;

/** Sets the handler to call when the reader of the output, such as `head`, closes the pipe. */
export function handleClosedOutput(handle: () => void): void {
  onOutputClosed = handle;
}

/** Handles closed output: calls the handler from {@link handleClosedOutput}. If there is none, exits with 0. */
export function outputClosed(): void {
  if (onOutputClosed === undefined) process.exit(0);
  onOutputClosed();
}

/** Calls `handle` for these signals until the returned object is disposed. */
export function onSignals(names: readonly NodeJS.Signals[], handle: (name: NodeJS.Signals) => void): Disposable {
  for (const name of names) process.on(name, handle);
  return {
    [Symbol.dispose]: () => {
      for (const name of names) process.off(name, handle);
    },
  };
}

import { constants } from "node:os";

/** Thrown when a signal ends a command. The exit code is the one that shells use for this signal. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  readonly exitCode: number;

  constructor(signal: NodeJS.Signals) {
    super("interrupted");
    this.exitCode = 128 + constants.signals[signal];
  }
}

let onOutputClosed: (() => void) | undefined;

/** Sets the handler for a reader of the output, such as `head`, that has closed the pipe. Without one, the process ends. */
export function handleClosedOutput(handle: () => void): void {
  onOutputClosed = handle;
}

/** Ends the command, because nobody reads its output. This is an error only if the command could not finish its work. */
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

import { constants } from "node:os";

/** Thrown when a signal ends a command. It has the exit code that a shell reports, and needs no message. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  readonly exitCode: number;

  constructor(signal: NodeJS.Signals) {
    super("interrupted");
    this.exitCode = 128 + constants.signals[signal];
  }
}

/** Handles these signals until it is disposed. */
export function onSignals(names: readonly NodeJS.Signals[], handle: (name: NodeJS.Signals) => void): Disposable {
  for (const name of names) process.on(name, handle);
  return {
    [Symbol.dispose]: () => {
      for (const name of names) process.off(name, handle);
    },
  };
}

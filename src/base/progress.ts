/** The progress of an operation that handles several servers, sessions or records. */
export interface Progress {
  /** How many of the servers, sessions or records the operation has finished. */
  done: number;
  total: number;
  /** The turns for which the operation waits now. */
  turns: AwaitedTurns[];
}

/** Turns on one server that have to end before the server can stop. */
export interface AwaitedTurns {
  serverId: string;
  sessionIds: string[];
  /** How long the operation still waits for these turns at the time of the report, in milliseconds. */
  remainingMs: number;
}

/** Called after each change. */
export type OnProgress = (progress: Progress) => void;

/**
 * Adds up the progress of the parts of an operation, and reports the sum.
 *
 * @param total the total of all parts. Default: the sum of the totals that they have reported.
 * @returns a function that returns the listener for the part with a given name
 */
export function addUp(onProgress: OnProgress | undefined, total?: number): (part: string) => OnProgress {
  const parts = new Map<string, Progress>();
  return (part) => (progress) => {
    parts.set(part, progress);
    const all = [...parts.values()];
    const sum = (of: (each: Progress) => number) => all.reduce((before, each) => before + of(each), 0);
    onProgress?.({
      done: sum(({ done }) => done),
      total: total ?? sum((each) => each.total),
      turns: all.flatMap(({ turns }) => turns),
    });
  };
}

/** Runs the work on `total` things. Reports all of them as finished when the work has succeeded. */
export async function counted<Result>(
  onProgress: OnProgress,
  total: number,
  work: (onProgress: OnProgress) => Promise<Result>,
): Promise<Result> {
  onProgress({ done: 0, total, turns: [] });
  const result = await work(onProgress);
  onProgress({ done: total, total, turns: [] });
  return result;
}

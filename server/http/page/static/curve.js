// `Curve` collects the losses of a run.

const MOST = 4000;

/** The losses of a run by step: of training, of validation, and of the n-gram model. */
export class Curve {
  train = [];
  valid = [];
  baseline = null;
  order = 0;

  /** Takes in an event of the job; returns whether the curve has changed. */
  add(event) {
    if (event.started) {
      this.baseline = event.started.baselineLoss ?? null;
      this.order = event.started.baselineOrder ?? 0;
      return true;
    }
    const progress = event.progress;
    if (!progress) return false;
    const step = Number(progress.step ?? 0);
    // A job that continues from a checkpoint, or from the beginning, repeats steps: the later
    // figures count.
    dropFrom(this.train, step);
    dropFrom(this.valid, step);
    addPoint(this.train, step, progress.trainLoss);
    addPoint(this.valid, step, progress.validLoss);
    if (this.train.length > MOST) this.train = halved(this.train);
    return true;
  }

  /** Returns the point with the lowest validation loss, if there is one. */
  best() {
    return this.valid.reduce((best, point) => (best && best.loss <= point.loss ? best : point), null);
  }
}

function addPoint(points, step, value) {
  const loss = Number(value);
  if (value !== undefined && Number.isFinite(loss)) points.push({ step, loss });
}

function dropFrom(points, step) {
  while (points.length && points.at(-1).step >= step) points.pop();
}

function halved(points) {
  const kept = [];
  for (let i = 0; i + 1 < points.length; i += 2) {
    const loss = (points[i].loss + points[i + 1].loss) / 2;
    kept.push({ step: points[i + 1].step, loss });
  }
  if (points.length % 2) kept.push(points.at(-1));
  return kept;
}
